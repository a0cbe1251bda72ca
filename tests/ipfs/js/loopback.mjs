// Loaded before each script: connections to anything but this machine fail.
import net from 'node:net'

const connect = net.Socket.prototype.connect
const HERE = new Set(['127.0.0.1', '::1', 'localhost'])

net.Socket.prototype.connect = function (...args) {
  const [options] = Array.isArray(args[0]) ? args[0] : args
  const { host, path } = typeof options === 'object' ? options : { host: args[1] }
  if (path == null && host != null && !HERE.has(host)) {
    throw new Error(`the tests do not connect to ${host}`)
  }
  return connect.apply(this, args)
}
