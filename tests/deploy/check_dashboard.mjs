// Reads a dashboard, checks it with Grafana's own declarations, and prints the errors as a
// JSON list. Argument: the folder with node_modules.
import {compile} from "./compile.mjs";

let text = "";
for await (const chunk of process.stdin) text += chunk;
const {panels, ...board} = JSON.parse(text);

const cfg = "@grafana/schema/dist/types/raw/composable";
const source = [
  'import type {Dashboard, GraphFieldConfig, Panel, RowPanel} from "@grafana/schema";',
  `import type * as stat from "${cfg}/stat/panelcfg/x/StatPanelCfg_types.gen.d.ts";`,
  `import type * as timeseries from "${cfg}/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.d.ts";`,
  // As in JSON: an enumeration is its value, and every field is optional.
  "type Values<T> = T extends string ? `${T}` : T extends number | boolean ? T" +
    " : T extends Array<infer E> ? Array<Values<E>>" +
    " : T extends object ? {[K in keyof T]?: Values<T[K]>} : T;",
];
const names = source.map(() => "declarations");
const check = (name, type, value) => {
  source.push(`{const checked: Values<${type}> = ${JSON.stringify(value)};}`);
  names.push(name);
};

check("dashboard", 'Omit<Dashboard, "panels">', board);
for (const panel of panels) {
  if (panel.type === "row") {
    check(panel.title, "RowPanel", panel);
    continue;
  }
  const {fieldConfig, options, ...rest} = panel;
  const {custom, ...defaults} = fieldConfig.defaults;
  check(panel.title, 'Omit<Panel, "fieldConfig" | "options">', rest);
  check(`${panel.title}, options`, `${panel.type}.Options`, options);
  check(`${panel.title}, fields`, 'Panel["fieldConfig"]', {...fieldConfig, defaults});
  if (custom) check(`${panel.title}, custom`, "GraphFieldConfig", custom);
}
console.log(JSON.stringify(await compile(process.argv[2], source, names)));
