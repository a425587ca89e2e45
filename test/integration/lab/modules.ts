/** Kernel modules and what they depend on, read from the modules themselves: Debian's package carries no index. */
import { readdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'

/** The modules of one kernel tree, `/lib/modules/VERSION`. */
export class ModuleTree {
  readonly #pathOf = new Map<string, string>()
  readonly #root: string

  constructor(root: string) {
    this.#root = root
    for (const path of readdirSync(join(root, 'kernel'), { recursive: true, encoding: 'utf8' })) {
      if (path.endsWith('.ko')) this.#pathOf.set(canonical(basename(path, '.ko')), join('kernel', path))
    }
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
    const content = readFileSync(join(this.#root, path), 'latin1')
    const depends = /\0depends=([^\0]*)\0/.exec(content)?.[1] ?? ''
    const soft = [...content.matchAll(/\0softdep=([^\0]*)\0/g)].flatMap(match => match[1]!.split(' '))
    return [...depends.split(','), ...soft.filter(word => !word.endsWith(':'))].filter(name => name !== '')
  }
}

/** The kernel takes `nvme-tcp` and `nvme_tcp` for the same module. */
const canonical = (name: string): string => name.replaceAll('-', '_')
