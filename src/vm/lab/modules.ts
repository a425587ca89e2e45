/** Kernel modules and what they depend on, read from the modules themselves: Debian's package carries no index. */
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { gunzipSync } from 'node:zlib'

/** A module as distributions ship it: plain, or packed by one of these. */
const MODULE = /\.ko(?:\.(gz|xz|zst))?$/
const MODULE_BYTES_MAX = 64 << 20

/** The modules of one kernel tree, `/lib/modules/VERSION`. */
export class ModuleTree {
  readonly #pathOf = new Map<string, string>()
  readonly #root: string

  constructor(root: string) {
    this.#root = root
    for (const path of readdirSync(join(root, 'kernel'), { recursive: true, encoding: 'utf8' })) {
      if (MODULE.test(path)) this.#pathOf.set(canonical(moduleName(path)), join('kernel', path))
    }
  }

  has(name: string): boolean {
    return this.#pathOf.has(canonical(name))
  }

  /** A module's bytes, unpacked; `path` as `closure` gives it. */
  read(path: string): Buffer {
    const packed = join(this.#root, path)
    const [, packer] = MODULE.exec(path) ?? []
    if (packer === undefined) return readFileSync(packed)
    if (packer === 'gz') return gunzipSync(readFileSync(packed))
    return execFileSync(packer === 'xz' ? 'xz' : 'zstd', ['-dc', packed], { maxBuffer: MODULE_BYTES_MAX })
  }

  /**
   * The paths, below the tree, of these modules and all they depend on, each after those it needs, so that they can
   * be inserted in that order. What is built into the kernel has no module and is left out.
   */
  closure(names: readonly string[]): string[] {
    const paths = new Set<string>()
    const visiting = new Set<string>()
    const visit = (name: string): void => {
      const path = this.#pathOf.get(canonical(name))
      if (path === undefined || visiting.has(path)) return
      visiting.add(path)
      this.#dependencies(path).forEach(visit)
      paths.add(path)
    }
    names.forEach(visit)
    return [...paths]
  }

  /** The names in a module's `.modinfo` section: strings `key=value`, each between zero bytes. */
  #dependencies(path: string): string[] {
    const content = this.read(path).toString('latin1')
    const depends = /\0depends=([^\0]*)\0/.exec(content)?.[1] ?? ''
    const soft = [...content.matchAll(/\0softdep=([^\0]*)\0/g)].flatMap(match => match[1]!.split(' '))
    return [...depends.split(','), ...soft.filter(word => !word.endsWith(':'))].filter(name => name !== '')
  }
}

/** Without directory and endings. */
export const moduleName = (path: string): string => basename(path).replace(MODULE, '')

/** The kernel takes `nvme-tcp` and `nvme_tcp` for the same module. */
const canonical = (name: string): string => name.replaceAll('-', '_')
