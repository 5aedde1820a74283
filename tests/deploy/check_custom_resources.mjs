// Reads a JSON list of objects, validates those whose schema a package has, and prints
// {"checked": [identity...], "errors": [...]}. Argument: the folder with node_modules.
import {existsSync} from "node:fs";
import {pathToFileURL} from "node:url";

const packages = {
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
  "networking.gke.io": "@kubernetes-models/gke",
  "networking.istio.io": "@kubernetes-models/istio",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
};

let text = "";
for await (const chunk of process.stdin) text += chunk;

const checked = [];
const errors = [];
for (const object of JSON.parse(text)) {
  const [group, version] = object.apiVersion.split("/");
  const identity = `${object.kind} ${object.metadata.name}`;
  if (!(group in packages)) continue;
  const folder = `${process.argv[2]}/node_modules/${packages[group]}/${group}/${version}`;
  const index = ["index.mjs", "index.js"].map((name) => `${folder}/${name}`).find(existsSync);
  if (!index) continue;
  const models = await import(pathToFileURL(index));
  const Model = models[object.kind] ?? models.default?.[object.kind];
  if (!Model) continue;
  checked.push(identity);
  try {
    new Model(object).validate();
  } catch (error) {
    errors.push(`${identity}: ${error.message}`);
  }
}
console.log(JSON.stringify({checked, errors}));
