/**
 * open-iscsi's record of a target, where its daemon reads the password from. iscsiadm takes that as an argument only, which
 * everybody on the machine can see; so it is written where iscsiadm would write it.
 */
import { chmod, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { RpcError } from '../core/errors.ts'

/** Debian's, and what newer releases have from upstream. */
const DIRECTORIES = ['/etc/iscsi/nodes', '/var/lib/iscsi/nodes'] as const
const PASSWORD = 'node.session.auth.password'

/**
 * Sets the password of a target, for its next login. `shown` is the record as `iscsiadm -m node -T TARGET -p PORTAL` prints
 * it, which says where it is. Throws `RpcError` EINVAL for what no record can hold, ENOENT when it is not there.
 */
export async function recordPassword(
  target: string,
  shown: string,
  password: string,
  directories: readonly string[] = DIRECTORIES,
): Promise<void> {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for.
  if (password.trim() !== password || /[\u0000-\u001f\u007f]/.test(password)) {
    throw new RpcError(
      'EINVAL',
      `the password for ${target} begins or ends with a space, or has a control character in it, which open-iscsi does not keep`,
    )
  }
  for (const path of directories.flatMap(each => pathsOf(each, target, shown))) {
    const record = await readFile(path, 'utf8').catch(ifThere)
    if (record === undefined) continue
    const lines = record.split('\n').filter(line => line !== '' && !line.startsWith(`${PASSWORD} =`))
    // Only root reads what iscsiadm has made; now and then an administrator has thought otherwise.
    await chmod(path, 0o600)
    await writeFile(path, `${[...lines, `${PASSWORD} = ${password}`].join('\n')}\n`, { flush: true })
    return
  }
  throw new RpcError(
    'ENOENT',
    `open-iscsi has no record of ${target} below ${directories.join(' or ')}, where its password is to be`,
  )
}

/** One with a number of its portal group is a directory of one file an interface; one without is a file. */
function pathsOf(directory: string, target: string, shown: string): string[] {
  const value = (name: string): string =>
    shown
      .split('\n')
      .find(line => line.startsWith(`${name} = `))
      ?.slice(name.length + 3)
      .trim() ?? ''
  const portal = `${value('node.conn[0].address')},${value('node.conn[0].port')}`
  const group = value('node.tpgt')
  return [
    join(directory, target, `${portal},${group}`, value('iface.iscsi_ifacename')),
    join(directory, target, portal),
  ]
}

function ifThere(error: NodeJS.ErrnoException): undefined {
  if (error.code === 'ENOENT' || error.code === 'ENOTDIR' || error.code === 'EISDIR') return undefined
  throw error
}
