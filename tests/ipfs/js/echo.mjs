// Says what it was given; an argument that is a URL is fetched.
import { text } from 'node:stream/consumers'

const args = process.argv.slice(2)
for (const url of args.filter((arg) => arg.startsWith('http'))) {
  await fetch(url).catch((error) => { throw error.cause ?? error })
}
console.log(JSON.stringify({ arguments: args, input: await text(process.stdin) }))
