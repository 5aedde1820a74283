// Reads a JSON list of objects, checks those whose schema a package has, and prints
// {"checked": [identity...], "errors": [...]}. Argument: the folder with node_modules.
//
// Each is looked at twice: the compiled JSON schema knows ranges, patterns and formats but
// lets unknown fields pass, as the API server does when it drops them; the TypeScript
// declarations know every field, so that a misspelt one is an error.
import {existsSync} from "node:fs";
import {pathToFileURL} from "node:url";

import {compile} from "./compile.mjs";

const packages = {
  "gateway.envoyproxy.io": "@kubernetes-models/envoy-gateway",
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
  "networking.gke.io": "@kubernetes-models/gke",
  "networking.istio.io": "@kubernetes-models/istio",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
};
// Fields newer than the packages' schemas: a real Envoy Gateway 1.9 accepts these
// (tests/gateways).
const removeNewer = {
  EnvoyExtensionPolicy: (spec) => {
    delete spec.mergeType;
    for (const each of spec.extProc ?? []) delete each.backendSettings?.http2?.connectionKeepalive;
  },
};
const tools = process.argv[2];

let text = "";
for await (const chunk of process.stdin) text += chunk;

const checked = [];
const errors = [];
const source = [];
for (const object of JSON.parse(text)) {
  removeNewer[object.kind]?.(object.spec);
  const [group, version] = object.apiVersion.split("/");
  const identity = `${object.kind} ${object.metadata.name}`;
  if (!(group in packages)) continue;
  const module = `${packages[group]}/${group}/${version}`;
  const folder = `${tools}/node_modules/${module}`;
  const index = ["index.mjs", "index.js"].map((name) => `${folder}/${name}`).find(existsSync);
  if (!index) continue;
  const models = await import(pathToFileURL(index));
  const Model = models[object.kind] ?? models.default?.[object.kind];
  if (!Model) continue;
  try {
    new Model(object).validate();
  } catch (error) {
    errors.push(`${identity}: ${error.message}`);
  }
  const name = `Model${checked.length}`;
  const {apiVersion, kind, ...data} = object;
  source.push(
    `import {${kind} as ${name}} from "${module}"; new ${name}(${JSON.stringify(data)});`,
  );
  checked.push(identity);
}

errors.push(...(await compile(tools, source, checked)));
console.log(JSON.stringify({checked, errors}));
