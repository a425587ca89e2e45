#!/usr/bin/env node
// The launcher is plain JavaScript in old syntax, so that even an old Node gets as far as the message.
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const FLOOR = [20, 19]
const [major, minor] = process.versions.node.split('.').map(Number)
const main = new URL('../dist/cli/main.js', import.meta.url)

if (major < FLOOR[0] || (major === FLOOR[0] && minor < FLOOR[1])) {
  console.error(
    `qpair: this is Node ${process.versions.node}, and qpair needs ${FLOOR.join('.')} or newer: install it from https://nodejs.org, or with your distribution's nodejs package`,
  )
  process.exitCode = 2
} else if (!existsSync(fileURLToPath(main))) {
  console.error('qpair: it has not been built yet: run `npm ci` (or `npm run build`) in its directory')
  process.exitCode = 2
} else {
  // A reader that closes early (qpair … | head) is not an error.
  process.stdout.on('error', error => {
    if (error.code !== 'EPIPE') throw error
  })
  const { main: run } = await import(main.href)
  process.exitCode = await run(process.argv.slice(2))
}
