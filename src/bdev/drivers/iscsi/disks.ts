/** iSCSI disks as devices, on the control thread. */
import { lookup } from 'node:dns/promises'
import { RpcError } from '../../../core/errors.ts'
import { logger } from '../../../core/log.ts'
import type { ReactorGroup } from '../../../reactor/group.ts'
import type { MethodCall } from '../../../rpc/config.ts'
import { withoutPassword } from '../../../rpc/without-secrets.ts'
import { libiscsi } from '../../../sys/libiscsi.ts'
import type { BdevInfo } from '../../bdev.ts'
import { checkBlockSize } from '../../geometry.ts'
import { IoType } from '../../io.ts'
import type { BdevRegistry } from '../../registry.ts'
import { deriveUuid } from '../../uuid.ts'
import { checkIscsiName, parseAddress } from './address.ts'
import { portalOf } from './failure.ts'
import { type IscsiDevice, type Login, type News, Topic, type UnitFacts } from './messages.ts'

const log = logger('iscsi')

/** As SPDK has it. */
const TIMEOUT_SEC_DEFAULT = 30

export interface DiskOptions {
  readonly name: string
  readonly initiator: string
  /** With user and password, where the target wants them. */
  readonly url: string
}

interface Disk {
  readonly options: DiskOptions
  readonly info: BdevInfo
  /** It is being looked at; `true` when it is to be looked at again. */
  looking: boolean | undefined
  /** A refusal to shrink was logged. */
  warned: boolean
}

export class IscsiDisks {
  readonly #bdevs: BdevRegistry
  readonly #reactors: ReactorGroup
  readonly #disks = new Map<string, Disk>()
  readonly #opening = new Set<string>()
  /** For disks that are made from now on: see `Login`. */
  #timeoutSec = TIMEOUT_SEC_DEFAULT

  constructor(bdevs: BdevRegistry, reactors: ReactorGroup) {
    this.#bdevs = bdevs
    this.#reactors = reactors
    bdevs.saveWith(() => this.#savedCalls())
    bdevs.listen({ removed: ({ name }) => this.#disks.delete(name) })
    for (let i = 0; i < reactors.count; i++) {
      const port = reactors.port(i)
      port.on<string>(Topic.RESOLVE, resolve)
      port.on<News>(Topic.NEWS, news => this.#heard(news))
    }
  }

  setTimeout(timeoutSec: number): void {
    this.#timeoutSec = timeoutSec
  }

  /**
   * Throws `RpcError`: EEXIST, EINVAL, ENOTSUP without libiscsi; ENOENT without the target, ENODEV without the unit, EACCES
   * when the target does not let us in, and what the network says when it cannot be reached.
   */
  async create(options: DiskOptions): Promise<BdevInfo> {
    const { name, initiator, url } = options
    checkIscsiName('initiator_iqn', initiator)
    const login: Login = { name, initiator, address: parseAddress(url), timeoutSec: this.#timeoutSec }
    libiscsi()
    if (this.#opening.has(name) || this.#bdevs.find(name) !== undefined) {
      throw new RpcError(
        'EEXIST',
        `a bdev named ${name} exists already, or is being created: choose another name`,
      )
    }
    this.#opening.add(name)
    try {
      const facts = await this.#probe(login)
      const info = describeBdev(options, login, facts)
      await this.#bdevs.add(info)
      this.#disks.set(name, { options, info, looking: undefined, warned: false })
      return info
    } finally {
      this.#opening.delete(name)
    }
  }

  async #probe(login: Login): Promise<UnitFacts> {
    try {
      return await this.#reactors.port(0).call<UnitFacts>(Topic.PROBE, login)
    } catch (error) {
      if (!(error instanceof RpcError)) throw error
      throw new RpcError(error.code, `${login.name}: ${error.message}`, { cause: error })
    }
  }

  #heard({ name, what }: News): void {
    const disk = this.#disks.get(name)
    if (disk === undefined) return
    log.info(`${name}: ${what}`)
    if (disk.looking === undefined) void this.#look(disk)
    else disk.looking = true
  }

  /** Its size may be another. */
  async #look(disk: Disk): Promise<void> {
    const { info } = disk
    do {
      disk.looking = false
      try {
        const { blockSize, blockCount } = await this.#probe(info.device as IscsiDevice)
        await this.#resize(disk, blockSize, blockCount)
      } catch (error) {
        log.warning(`cannot look at the size of an iSCSI disk: ${(error as Error).message}`)
      }
    } while (disk.looking)
    disk.looking = undefined
  }

  async #resize(disk: Disk, blockSize: number, blockCount: number): Promise<void> {
    const { info } = disk
    if (this.#disks.get(info.name) !== disk) return
    if (blockSize !== info.blockSize) {
      throw new RpcError(
        'EINVAL',
        `${info.name} has blocks of ${blockSize} bytes now, ${info.blockSize} before: create it anew`,
      )
    }
    try {
      await this.#bdevs.resize(info.name, blockCount)
      disk.warned = false
    } catch (error) {
      if (!disk.warned) log.warning((error as Error).message)
      disk.warned = true
    }
  }

  /** Each disk after the option that it was made under. */
  #savedCalls(): MethodCall[] {
    const calls: MethodCall[] = []
    let timeoutSec = TIMEOUT_SEC_DEFAULT
    const change = (wanted: number): void => {
      if (wanted !== timeoutSec)
        calls.push({ method: 'bdev_iscsi_set_options', params: { timeout_sec: wanted } })
      timeoutSec = wanted
    }
    for (const { options, info } of this.#disks.values()) {
      change((info.device as IscsiDevice).timeoutSec)
      const { name, initiator, url } = options
      calls.push({ method: 'bdev_iscsi_create', params: { name, initiator_iqn: initiator, url } })
    }
    change(this.#timeoutSec)
    return calls
  }
}

/** libiscsi would look names up itself, and hold its thread up until the answer is there. */
async function resolve(host: string): Promise<string> {
  try {
    const { address, family } = await lookup(host)
    return family === 6 ? `[${address}]` : address
  } catch (cause) {
    throw new RpcError(
      'EHOSTUNREACH',
      `the name ${host} is not known (${(cause as { code?: string }).code})`,
      { cause },
    )
  }
}

function describeBdev({ name, initiator, url }: DiskOptions, login: Login, facts: UnitFacts): BdevInfo {
  const { address } = login
  const { unit, blockSize, physicalBlockSize, blockCount, writeSize, unmapGranularity } = facts
  checkBlockSize(name, `the block size of LUN ${address.lun}`, blockSize)
  if (!Number.isSafeInteger(blockCount * blockSize)) {
    throw new RpcError(
      'EINVAL',
      `${name}: LUN ${address.lun} says that it has ${blockCount} blocks, more than any disk`,
    )
  }
  const supports: IoType[] = [IoType.READ, IoType.WRITE]
  if (unit.hasCache) supports.push(IoType.FLUSH)
  if (unit.unmapBlocks > 0) supports.push(IoType.UNMAP)
  if (unit.zeroesBlocks > 0) supports.push(IoType.WRITE_ZEROES)
  return {
    name,
    aliases: [],
    driver: 'iscsi',
    product: 'iSCSI LUN',
    // By any portal and from any machine the same; not by the designator alone, which some targets make of small numbers.
    uuid: deriveUuid('iscsi', address.target, String(address.lun), facts.identity),
    blockSize,
    physicalBlockSize,
    blockCount,
    supports: new Set(supports),
    preferred: {
      writeAlignment: 0,
      writeGranularity: 0,
      writeSize,
      unmapAlignment: 0,
      unmapGranularity,
    },
    writeCache: unit.hasCache,
    readOnly: facts.readOnly,
    bases: [],
    device: { ...login, unit } satisfies IscsiDevice,
    driverSpecific: {
      iscsi: {
        initiator_name: initiator,
        url: withoutPassword(url),
        portal: portalOf(address),
        vendor: facts.vendor,
        model: facts.model,
      },
    },
  }
}
