// Makes one file of a script and all that it imports, for a page.
//
//   bundle.mjs SCRIPT OUTPUT
import { build } from 'esbuild'

const [script, outfile] = process.argv.slice(2)
await build({ entryPoints: [script], outfile, bundle: true, format: 'esm', logLevel: 'error' })
