/** Machines made of a few files, for checks and reports about hosts. */
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { Host, type HostOptions } from '../../src/host/host.ts'
import { temporaryDirectory } from '../rpc/support.ts'

/** Names that end in `/` are directories, texts that begin with `->` are symbolic links. */
export function machine(files: Readonly<Record<string, string>>, options: HostOptions = {}): Host {
  const root = temporaryDirectory()
  for (const [name, text] of Object.entries(files)) {
    const path = join(root, name)
    mkdirSync(name.endsWith('/') ? path : dirname(path), { recursive: true })
    if (text.startsWith('-> ')) symlinkSync(text.slice(3), path)
    else if (!name.endsWith('/')) writeFileSync(path, text, { mode: 0o755 })
  }
  return new Host({ root, arch: 'x64', kernelRelease: '6.1.0', env: { PATH: '/usr/bin' }, ...options })
}
