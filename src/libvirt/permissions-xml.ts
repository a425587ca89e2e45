/** `<permissions>`, as pools and volumes have them. */
import { node, nodeUnlessEmpty, textNode, type XmlNode } from '../core/xml.ts'
import type { XmlReader } from './xml-reader.ts'

export interface Permissions {
  /** The permission bits, 0 to 0o777. */
  readonly mode?: number | undefined
  readonly owner?: number | undefined
  readonly group?: number | undefined
  /** The label of a mandatory access control system, SELinux's. */
  readonly label?: string | undefined
}

/** -1 has meant "not said" in documents of old versions. */
const ID_MAX = 0xffff_fffe

/** Undefined when nothing is said. */
export function readPermissions(parent: XmlReader | undefined): Permissions | undefined {
  const reader = parent?.child('permissions')
  if (reader === undefined) return undefined
  const modeText = reader.childText('mode')
  if (modeText !== undefined && !/^[0-7]{1,8}$/.test(modeText)) {
    reader.child('mode')!.fail(`<mode>${modeText}: it is an octal number`)
  }
  const mode = modeText === undefined ? undefined : Number.parseInt(modeText, 8)
  if (mode !== undefined && mode > 0o777) {
    reader.child('mode')!.fail(`<mode>${modeText}: it is at most 0777`)
  }
  const id = (name: string): number | undefined => {
    const value = reader.child(name)?.textNumber(-1, ID_MAX)
    return value === -1 ? undefined : value
  }
  return { mode, owner: id('owner'), group: id('group'), label: reader.childText('label') }
}

/** Undefined when nothing is said. */
export function permissionsNode(permissions: Permissions | undefined): XmlNode | undefined {
  const { mode, owner, group, label } = permissions ?? {}
  return nodeUnlessEmpty(
    node(
      'permissions',
      {},
      textNode('mode', mode === undefined ? undefined : `0${mode.toString(8)}`),
      textNode('owner', owner),
      textNode('group', group),
      textNode('label', label),
    ),
  )
}
