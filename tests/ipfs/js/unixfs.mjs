// Prints CID and size of a directory of so many small files, as ipfs-unixfs-importer makes it.
import { importer } from 'ipfs-unixfs-importer'

const files = function * () {
  for (let i = 0; i < Number(process.argv[2]); i++) {
    yield { path: `d/f${String(i).padStart(6, '0')}`, content: new TextEncoder().encode(String(i % 10)) }
  }
}
let last
for await (const entry of importer(files(), { put: cid => cid }, { profile: 'unixfs-v1-2025' })) {
  last = entry
}
console.log(JSON.stringify([last.cid.toString(), Number(last.size)]))
