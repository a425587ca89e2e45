/**
 * SELinux: guests may open what has the type of images; libvirt gives it to what it knows, with categories of the guest's own.
 * Whether a label will do is asked of the policy itself, as it is loaded.
 */
import { open, readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { realPath } from '../../core/real-path.ts'
import type { AccessParts, Guest, Need, Obstacle } from './access.ts'
import { commandLine, quoted } from './command-line.ts'

export async function labelObstacle(
  { path, kind, isReadOnly, isKnownToLibvirt }: Need,
  { selinuxLabel }: Guest,
  parts: AccessParts,
): Promise<Obstacle | undefined> {
  // Where it only notes what it would refuse, nothing is in the way.
  const isPermissive = (await read(join(parts.root, 'sys/fs/selinux/enforce')))?.trim() === '0'
  if (isKnownToLibvirt || isPermissive) return undefined
  const real = await realPath(path)
  const label = await parts.run('stat', ['--format=%C', '--', real]).then(
    text => text.trim(),
    () => undefined,
  )
  const type = typeOf(label)
  if (label === undefined || type === undefined) return undefined
  if (kind === 'socket') return socketObstacle(real, label, selinuxLabel, parts)
  const granted = await askPolicy(selinuxLabel, label, 'file', parts)
  const wanted = ['open', 'read', ...(isReadOnly ? [] : ['write'])]
  // Where the policy cannot be asked, by the one type that is right in any.
  const isRight = granted === undefined ? type === 'svirt_image_t' : wanted.every(right => granted.has(right))
  if (isRight) return undefined
  const right = isReadOnly ? 'virt_content_t' : 'svirt_image_t'
  const commands = [
    ['semanage', 'fcontext', '-a', '-t', right, real.replaceAll(/[.*+?()[\]{}|^$\\]/g, '\\$&')],
    ['restorecon', '-v', real],
  ]
  return {
    cause: `SELinux: ${real} is labelled ${type}, which guests may not open, and libvirt does not know of it`,
    remedy: commands.map(commandLine),
    fix: async () => {
      for (const [program, ...args] of commands) await parts.run(program!, args)
    },
  }
}

/** The socket is of one type, and who listens there of another; neither can be chosen by a label that lasts. */
async function socketObstacle(
  path: string,
  label: string,
  guest: string | undefined,
  parts: AccessParts,
): Promise<Obstacle | undefined> {
  const own = (await read(join(parts.root, 'proc/self/attr/current')))?.replace(/\0$/, '').trim()
  const asked = [
    { label, name: 'sock_file', right: 'write' },
    { label: own, name: 'unix_stream_socket', right: 'connectto' },
  ]
  const rules: string[] = []
  for (const { label: object, name, right } of asked) {
    const granted = await askPolicy(guest, object, name, parts)
    // Where the policy cannot be asked, nobody knows.
    if (granted === undefined || granted.has(right)) continue
    rules.push(`(allow ${typeOf(guest)} ${typeOf(object)} (${name} (${right})))`)
  }
  if (rules.length === 0) return undefined
  return {
    cause: `SELinux: guests (${typeOf(guest)}) may not connect to ${path}, labelled ${typeOf(label)}, where this daemon listens as ${typeOf(own)}`,
    remedy: [`echo ${quoted(rules.join(' '))} > qpair.cil`, 'semodule -i qpair.cil'],
  }
}

const typeOf = (label: string | undefined): string | undefined => label?.split(':')[2]

/**
 * What the policy grants (selinuxfs, `access`: two labels and the number of a class; the answer begins with a bit for each
 * permission, the first one being 1). Undefined where it cannot be asked.
 */
async function askPolicy(
  subject: string | undefined,
  object: string | undefined,
  name: string,
  { root }: AccessParts,
): Promise<ReadonlySet<string> | undefined> {
  if (subject === undefined || object === undefined) return undefined
  const directory = join(root, 'sys/fs/selinux')
  const index = await read(join(directory, 'class', name, 'index'))
  const file = await open(join(directory, 'access'), 'r+').catch(() => undefined)
  if (file === undefined || index === undefined) return undefined
  try {
    await file.write(`${subject} ${object} ${index}`)
    const { buffer, bytesRead } = await file.read(Buffer.alloc(256), 0, 256, null)
    const bits = Number.parseInt(buffer.toString('latin1', 0, bytesRead), 16)
    const permissions = join(directory, 'class', name, 'perms')
    const granted = new Set<string>()
    for (const permission of await readdir(permissions)) {
      const bit = Number(await read(join(permissions, permission))) - 1
      if (((bits >>> bit) & 1) === 1) granted.add(permission)
    }
    return granted
  } catch {
    // A label that this policy does not know, or another user than root.
    return undefined
  } finally {
    await file.close()
  }
}

const read = (path: string): Promise<string | undefined> => readFile(path, 'utf8').catch(() => undefined)
