// Reads an array with zarrita.js over HTTP: its shape, its type, attributes and its values.
//
//   zarrita.mjs URL [PATH [START STOP]]
import * as zarr from 'zarrita'

const [url, path = '', start, stop] = process.argv.slice(2)
const root = zarr.root(new zarr.FetchStore(url))
const array = await zarr.open(path === '' ? root : root.resolve(path), { kind: 'array' })
const box = start == null
  ? null
  : [zarr.slice(Number(start), Number(stop)), ...array.shape.slice(1).map(() => null)]
const { data, shape } = await zarr.get(array, box)
console.log(JSON.stringify({
  shape,
  dtype: array.dtype,
  attributes: array.attrs,
  values: Array.from(data, Number)
}))
