/**
 * Installs what the integration tests need, before any of them runs: so no test waits for apt, and the boot files of
 * the guests are ready. Plain JavaScript, because Node 20 does not run TypeScript; vite is what vitest reads it with.
 */
import { fileURLToPath } from 'node:url'
import { runnerImport } from 'vite'

const load = async name => {
  const path = fileURLToPath(new URL(name, import.meta.url))
  return (await runnerImport(path, { configFile: false, logLevel: 'warn' })).module
}

const { installMissing } = await load('packages.ts')
const reason = await installMissing()
if (reason === undefined) {
  const { bootFiles } = await load('image.ts')
  const { version } = await bootFiles()
  console.log(`all programs are installed; guests run Linux ${version}`)
} else {
  // Not a failure: the tests that need what is missing are skipped, and say so by name.
  console.log(`some integration tests will be skipped: this machine ${reason}`)
}
