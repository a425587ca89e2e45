/**
 * Secrets, as libvirt has them: what a pool or a disk proves with who it is, named by UUID or by what it is for. The
 * document is part of the saved configuration; the value is in a file that only the daemon's user can read, or, when the
 * secret is ephemeral, in memory. No log and no list has it.
 */
import { randomUUID } from 'node:crypto'
import { chmod, mkdir, open, readFile, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { RpcError, thereAre } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { PoolAuth } from '../libvirt/pool-xml.ts'
import { formatSecret, parseSecret, type SecretDocument } from '../libvirt/secret-xml.ts'
import type { Configurable, MethodCall } from '../rpc/config.ts'

const log = logger('volume')

/** More than any key, and than libvirt takes. */
const VALUE_BYTES_MAX = 65536

export interface Secret {
  readonly uuid: string
  readonly document: SecretDocument
  readonly hasValue: boolean
}

export interface SecretValue {
  readonly bytes: Buffer
  /** A file that has it in base64; undefined for one that is in memory only. */
  readonly file: string | undefined
}

interface State {
  readonly uuid: string
  document: SecretDocument
  /** Of an ephemeral secret, or of any while the daemon has no state directory. */
  value: Buffer | undefined
}

export class Secrets implements Configurable {
  readonly subsystem = 'secret'
  readonly dependsOn: readonly string[] = []
  readonly #directory: string | undefined
  readonly #secrets = new Map<string, State>()

  /** `directory`: where values are kept; undefined for a daemon that keeps nothing. */
  constructor(directory: string | undefined) {
    this.#directory = directory
  }

  /** Throws `RpcError`: EINVAL for the document, EEXIST when another secret is for the same, EPERM for what was private. */
  async define(xml: string): Promise<Secret> {
    const document = parseSecret(xml)
    const { usage } = document
    const same = [...this.#secrets.values()].find(
      ({ document: other }) =>
        usage !== undefined && other.usage?.type === usage.type && other.usage.id === usage.id,
    )
    const uuid = document.uuid ?? same?.uuid ?? randomUUID()
    if (same !== undefined && same.uuid !== uuid) {
      throw new RpcError(
        'EEXIST',
        `secret ${same.uuid} is for ${usage!.type} ${usage!.id} already, and cannot be ${uuid}: undefine that one first`,
      )
    }
    const old = this.#secrets.get(uuid)
    if (old?.document.isPrivate && !document.isPrivate) {
      throw new RpcError('EPERM', `secret ${uuid} is private, and stays it: undefine it and begin anew`)
    }
    const value = old === undefined ? undefined : await this.#read(old)
    const state: State = { uuid, document: { ...document, uuid }, value: undefined }
    this.#secrets.set(uuid, state)
    if (value !== undefined) {
      await this.#forget(uuid)
      await this.#write(state, value)
    }
    return this.#told(state)
  }

  async setValue(name: string, bytes: Buffer): Promise<void> {
    const state = this.#get(name)
    if (bytes.length === 0 || bytes.length > VALUE_BYTES_MAX) {
      throw new RpcError(
        'EINVAL',
        `the value of secret ${state.uuid} has ${bytes.length} bytes: 1 to ${VALUE_BYTES_MAX} it can have`,
      )
    }
    await this.#write(state, bytes)
    log.notice(`secret ${state.uuid} has a new value`)
  }

  /** For whoever asks: a private secret tells nobody. Throws `RpcError`: ENOENT, EPERM, ENODATA. */
  async tell(name: string): Promise<Buffer> {
    const state = this.#get(name)
    if (state.document.isPrivate) {
      throw new RpcError('EPERM', `secret ${state.uuid} is private: its value is told to nobody`)
    }
    return (await this.#value(state)).bytes
  }

  /** For the pool that names it. Throws `RpcError`: ENOENT, ENODATA, EINVAL when it is for something else. */
  async valueFor(pool: string, { secret, type }: PoolAuth): Promise<SecretValue> {
    const state =
      'uuid' in secret
        ? this.#secrets.get(secret.uuid)
        : [...this.#secrets.values()].find(
            ({ document }) => document.usage?.type === USAGES[type] && document.usage.id === secret.usage,
          )
    if (state === undefined) {
      const wanted = 'uuid' in secret ? secret.uuid : `for ${USAGES[type]} ${secret.usage}`
      throw new RpcError(
        'ENOENT',
        `pool ${pool} proves who it is with the secret ${wanted}, which there is not: qpair secret define, and set-value`,
      )
    }
    const usage = state.document.usage?.type
    if (usage !== USAGES[type]) {
      throw new RpcError(
        'EINVAL',
        `pool ${pool} needs a secret for ${USAGES[type]}, and ${state.uuid} is for ${usage ?? 'nothing'}: name another`,
      )
    }
    return this.#value(state)
  }

  async undefine(name: string): Promise<void> {
    const { uuid } = this.#get(name)
    this.#secrets.delete(uuid)
    await this.#forget(uuid)
  }

  async list(): Promise<Secret[]> {
    return Promise.all([...this.#secrets.values()].map(state => this.#told(state)))
  }

  /** By UUID, or by what it is for. Throws `RpcError` ENOENT. */
  get(name: string): Promise<Secret> {
    return this.#told(this.#get(name))
  }

  xmlOf(name: string): string {
    return formatSecret(this.#get(name).document)
  }

  config(): MethodCall[] {
    return [...this.#secrets.values()]
      .filter(({ document }) => !document.isEphemeral)
      .map(({ document }) => ({ method: 'secret_define', params: { xml: formatSecret(document) } }))
  }

  async #told(state: State): Promise<Secret> {
    const { uuid, document } = state
    return { uuid, document, hasValue: (await this.#read(state)) !== undefined }
  }

  #get(name: string): State {
    const found =
      this.#secrets.get(name.toLowerCase()) ??
      [...this.#secrets.values()].find(({ document }) => document.usage?.id === name)
    if (found !== undefined) return found
    throw new RpcError('ENOENT', `there is no secret ${name}: ${thereAre(this.#secrets.keys())}`)
  }

  async #value(state: State): Promise<SecretValue> {
    const bytes = await this.#read(state)
    if (bytes === undefined) {
      throw new RpcError('ENODATA', `secret ${state.uuid} has no value yet: qpair secret set-value`)
    }
    return { bytes, file: state.value === undefined ? this.#fileOf(state.uuid) : undefined }
  }

  async #read({ uuid, value, document }: State): Promise<Buffer | undefined> {
    const file = this.#fileOf(uuid)
    if (value !== undefined || file === undefined || document.isEphemeral) return value
    const text = await readFile(file, 'utf8').catch((cause: NodeJS.ErrnoException) => {
      if (cause.code === 'ENOENT') return undefined
      throw new RpcError('EIO', `the value of secret ${uuid} cannot be read: ${cause.code} of ${file}`, {
        cause,
      })
    })
    return text === undefined ? undefined : Buffer.from(text, 'base64')
  }

  async #write(state: State, bytes: Buffer): Promise<void> {
    const file = this.#fileOf(state.uuid)
    if (file === undefined || state.document.isEphemeral) {
      state.value = bytes
      return
    }
    await mkdir(this.#directory!, { recursive: true, mode: 0o700 })
    await chmod(this.#directory!, 0o700)
    const draft = `${file}.new`
    await rm(draft, { force: true })
    const handle = await open(draft, 'wx', 0o600)
    try {
      await handle.writeFile(bytes.toString('base64'))
      await handle.sync()
    } finally {
      await handle.close()
    }
    await rename(draft, file)
  }

  async #forget(uuid: string): Promise<void> {
    const file = this.#fileOf(uuid)
    if (file !== undefined) await rm(file, { force: true })
  }

  /** Names of secrets come from documents, but those are UUIDs by their reader's word. */
  #fileOf(uuid: string): string | undefined {
    return this.#directory === undefined ? undefined : join(this.#directory, `${uuid}.base64`)
  }
}

/** What a secret has to be for, by the kind of proof. */
const USAGES = { ceph: 'ceph', chap: 'iscsi' } as const
