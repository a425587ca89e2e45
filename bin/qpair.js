#!/usr/bin/env node
// The launcher is plain JavaScript in old syntax, so that even an old Node gets as far as the message. It is CommonJS
// since Node starts its pool of threads, whose size is fixed from then on, to read the first ECMAScript module.
const { existsSync } = require('node:fs')
const { join } = require('node:path')
const { pathToFileURL } = require('node:url')

const FLOOR = [20, 19]
const [major, minor] = process.versions.node.split('.').map(Number)
const main = join(__dirname, '../dist/cli/main.js')

if (major < FLOOR[0] || (major === FLOOR[0] && minor < FLOOR[1])) {
  console.error(
    `qpair: this is Node ${process.versions.node}, and qpair needs ${FLOOR.join('.')} or newer: install it from https://nodejs.org, or with your distribution's nodejs package`,
  )
  process.exitCode = 2
} else if (!existsSync(main)) {
  console.error('qpair: it has not been built yet: run `npm ci` (or `npm run build`) in its directory')
  process.exitCode = 2
} else {
  // A reader that closes early (qpair … | head) is not an error.
  process.stdout.on('error', error => {
    if (error.code !== 'EPIPE') throw error
  })
  if (process.argv.includes('serve')) enlargePool()
  void run()
}

async function run() {
  const program = await import(pathToFileURL(main).href)
  process.exitCode = await program.main(process.argv.slice(2))
}

/** Each call that waits for Ceph has one of the threads, of which Node has four (see src/sys/blocking.ts). */
function enlargePool() {
  const options = [...process.execArgv, process.env.NODE_OPTIONS].join(' ')
  // What was loaded before this file may have started the pool.
  if (/(^|\s)(-r|--require|--import|--loader|--experimental-loader)\b/.test(options)) return
  process.env.UV_THREADPOOL_SIZE = process.env.UV_THREADPOOL_SIZE || '32'
}
