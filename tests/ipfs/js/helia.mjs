// Reads from trustless gateways as software does that has never heard of cas_zarr.
//
//   helia.mjs walk GATEWAY CID      all that is linked from a root: [[cid, codec, size, sha256], ...]
//   helia.mjs fetch GATEWAY URL...  what @helia/verified-fetch answers: [[status, type, sha256], ...]
import { createHash } from 'node:crypto'
import { fallbackRouter } from '@helia/fallback-router'
import { trustlessGatewayBlockBroker } from '@helia/trustless-gateway-client'
import { createVerifiedFetch } from '@helia/verified-fetch'
import * as dagCbor from '@ipld/dag-cbor'
import * as dagJson from '@ipld/dag-json'
import { blake3 } from '@noble/hashes/blake3.js'
import { createHeliaLight } from 'helia'
import { CID } from 'multiformats/cid'
import { from } from 'multiformats/hashes/hasher'

const [what, gateway, ...args] = process.argv.slice(2)
const hashers = [from({ name: 'blake3', code: 0x1e, encode: (input) => blake3(input) })]
const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex')

// A router of fallbacks alone is never asked: Helia waits for one that is not.
const gateways = fallbackRouter({ gateways: [gateway] })
const router = { name: 'gateways', findProviders: (...args) => gateways.findProviders(...args) }
const helia = await createHeliaLight({
  hashers,
  routers: [router],
  blockBrokers: [trustlessGatewayBlockBroker({ allowInsecure: true, allowLocal: true })]
}).start()

async function block (cid) {
  const parts = []
  for await (const part of helia.blockstore.get(cid)) parts.push(part)
  return Buffer.concat(parts)
}

const CODECS = { [dagCbor.code]: dagCbor, [dagJson.code]: dagJson }

function * links (value) {
  const cid = CID.asCID(value)
  if (cid != null) {
    yield cid
  } else if (value instanceof Uint8Array) {
    // bytes link nothing
  } else if (value != null && typeof value === 'object') {
    for (const child of Object.values(value)) yield * links(child)
  }
}

const actions = {
  async walk (cid) {
    const found = new Map()
    const todo = [CID.parse(cid)]
    const seen = new Set([cid])
    while (todo.length > 0) {
      await Promise.all(todo.splice(0, 16).map(async (cid) => {
        const data = await block(cid)
        found.set(cid.toString(), [cid.toString(), cid.code, data.length, sha256(data)])
        if (!(cid.code in CODECS)) return
        for (const link of links(CODECS[cid.code].decode(data))) {
          if (!seen.has(link.toString())) todo.push(link)
          seen.add(link.toString())
        }
      }))
    }
    return [...found.values()]
  },

  async fetch (...urls) {
    const fetched = await createVerifiedFetch(helia)
    const answers = []
    for (const url of urls) {
      const answer = await fetched(url, { allowInsecure: true, allowLocal: true })
      const body = new Uint8Array(await answer.arrayBuffer())
      answers.push([answer.status, answer.headers.get('content-type'), sha256(body)])
    }
    return answers
  }
}

try {
  const text = JSON.stringify(await actions[what](...args))
  await new Promise((resolve) => process.stdout.write(text, resolve))
} finally {
  await helia.stop()
}
process.exit(0)
