// Compiles one line of TypeScript for each thing to check, and tells whose line is wrong.
// Declarations know every field of a type, so that a misspelt one is an error.
import {pathToFileURL} from "node:url";

// `source`: the lines; `names`: whose each is; `tools`: the folder with node_modules.
export async function compile(tools, source, names) {
  const compiler = pathToFileURL(`${tools}/node_modules/typescript/lib/typescript.js`);
  const ts = (await import(compiler)).default;
  const file = `${tools}/checked.ts`; // in memory only, where imports find the packages
  const options = {
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    noEmit: true,
    skipLibCheck: true,
    strict: true,
    target: ts.ScriptTarget.ES2022,
    types: [],
  };
  const host = ts.createCompilerHost(options);
  const {fileExists, getSourceFile} = host;
  host.fileExists = (name) => name === file || fileExists(name);
  host.getSourceFile = (name, ...rest) =>
    name === file
      ? ts.createSourceFile(name, source.join("\n"), ...rest)
      : getSourceFile(name, ...rest);
  const program = ts.createProgram([file], options, host);
  return ts.getPreEmitDiagnostics(program).map((found) => {
    const line = found.file?.getLineAndCharacterOfPosition(found.start).line;
    const message = ts.flattenDiagnosticMessageText(found.messageText, " ");
    return found.file?.fileName === file ? `${names[line]}: ${message}` : message;
  });
}
