// Runs in a page: reads arrays with zarrita.js, draws one on the canvas, and tells its own server
// what it found. The task that it gets from there:
//
//   { arrays: [[URL, PATH], ...], draw: [URL, PATH, STEP], headers: URL }
import * as zarr from 'zarrita'

const answer = async (path, value) => {
  const body = value === undefined ? undefined : JSON.stringify(value)
  return await fetch(path, { method: body === undefined ? 'GET' : 'POST', body })
}

async function open (url, path) {
  return await zarr.open(zarr.root(new zarr.FetchStore(url)).resolve(path), { kind: 'array' })
}

async function read ([url, path]) {
  const array = await open(url, path)
  const { data, shape } = await zarr.get(array)
  return { shape, dtype: array.dtype, attributes: array.attrs, values: Array.from(data, Number) }
}

// Returns the grey of each pixel, as the canvas has it afterwards.
async function draw ([url, path, step]) {
  const { data, shape: [height, width] } = await zarr.get(await open(url, path), [step, null, null])
  const canvas = document.querySelector('canvas')
  Object.assign(canvas, { width, height })
  const low = Math.min(...data)
  const scale = 255 / (Math.max(...data) - low)
  const image = new ImageData(width, height)
  data.forEach((value, at) => image.data.set([...Array(3).fill((value - low) * scale), 255], 4 * at))
  const context = canvas.getContext('2d')
  context.putImageData(image, 0, 0)
  return Array.from(context.getImageData(0, 0, width, height).data).filter((_, at) => at % 4 === 0)
}

// What a script of another origin sees of an answer, and which headers it may send.
async function headers (url) {
  const seen = async (options) => {
    const found = await fetch(url, { cache: 'no-store', ...options })
    const names = ['accept-ranges', 'content-length', 'content-range', 'etag', 'x-ipfs-roots']
    return [found.status, Object.fromEntries(names.map((name) => [name, found.headers.get(name)]))]
  }
  const etag = (await seen({}))[1].etag
  // the cache of the browser tells a block from a file, by what was accepted
  const type = async (options) => (await fetch(url, options)).headers.get('content-type')
  const types = [await type({ headers: { Accept: 'application/vnd.ipld.raw' } }), await type({})]
  return {
    types,
    get: await seen({}),
    head: await seen({ method: 'HEAD' }),
    part: await seen({ headers: { Range: 'bytes=2-5' } }),
    same: await seen({ headers: { 'If-None-Match': etag } }),
    rest: await seen({ headers: { Range: 'bytes=2-', 'If-Range': etag } })
  }
}

try {
  const task = await (await answer('task.json')).json()
  await answer('found', {
    arrays: await Promise.all(task.arrays.map(read)),
    drawn: await draw(task.draw),
    headers: await headers(task.headers)
  })
} catch (error) {
  await answer('found', { error: String(error.stack ?? error) })
}
