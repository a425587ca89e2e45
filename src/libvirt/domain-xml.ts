/**
 * A domain's document: read for its disks, edited in place. Whatever an edit does not touch stays as it is, comments
 * included; libvirt checks the result when it is defined.
 */
import { RpcError, thereAre } from '../core/errors.ts'
import { formatXml, node, type XmlNode } from '../core/xml.ts'
import { type DiskSource, type NvmeDisk, nvmeArguments, parseOptions } from './disk-xml.ts'
import {
  appendTo,
  attributeOf,
  elementAt,
  elementIn,
  elementsIn,
  parseXml,
  refuse,
  serialize,
  serializeDocument,
  textOf,
  type XmlElement,
} from './xml.ts'

const QEMU_NAMESPACE = 'http://libvirt.org/schemas/domain/qemu/1.0'
const WHAT = "the domain's document"
/** The last is the chip set's on q35. */
const SLOT_MAX = 30

/** A disk as `virsh domblklist --details` tells of it, and a little more. */
export interface DomainDisk {
  /** `file`, `block`, `network`, `vhostuser` …; what of QEMU's arguments is neither a path nor a device is `network`. */
  readonly type: string
  /** `disk`, `cdrom`, `floppy`, `lun`. */
  readonly device: string
  /** libvirt's name of it; for an NVMe disk of the qemu namespace, the id of its drive. */
  readonly target: string
  /** `virtio`, `scsi`, `sata` …, `nvme`. */
  readonly bus: string
  /** Undefined for an empty drive. */
  readonly source: string | undefined
  /** The protocol of a network disk. */
  readonly protocol: string | undefined
  readonly serial: string | undefined
  readonly isReadOnly: boolean
  /**
   * Who gave it to QEMU: libvirt; the domain's qemu namespace, in QEMU's arguments; or the monitor, while the guest ran. Of the
   * latter two libvirt knows nothing.
   */
  readonly by: 'libvirt' | 'arguments' | 'monitor'
}

/**
 * Where it is written which disks a guest has had through the monitor: in the metadata of the guest that runs, which go when it
 * stops, as those disks do.
 */
export const MONITOR_DISKS = { uri: 'urn:qpair:monitor-disks:1', key: 'qpair' } as const

export class DomainDocument {
  readonly #root: XmlElement

  private constructor(root: XmlElement) {
    this.#root = root
  }

  /** Throws `RpcError` EINVAL with the line and the reason. */
  static parse(text: string): DomainDocument {
    const root = parseXml(text, WHAT, 'domain')
    for (const element of elementsIn(root)) {
      if (element.localName === 'commandline' && element.prefix === 'qemu') refuseElsewhere(element)
    }
    return new DomainDocument(root)
  }

  get name(): string {
    return textOf(elementIn(this.#root, 'name')) ?? refuse(WHAT, this.#root, 'the domain has no <name>')
  }

  get uuid(): string | undefined {
    return textOf(elementIn(this.#root, 'uuid'))
  }

  /** `kvm`, `qemu` … */
  get type(): string | undefined {
    return attributeOf(this.#root, 'type')
  }

  /** `pc-q35-7.2`, `pc-i440fx-7.2` … */
  get machine(): string | undefined {
    return attributeOf(elementAt(this.#root, 'os', 'type'), 'machine')
  }

  /** A security driver does not confine it, by its own words; where these name none, they mean the first one. */
  isExemptFrom(model: string): boolean {
    return elementsIn(this.#root, 'seclabel').some(
      label => attributeOf(label, 'type') === 'none' && (attributeOf(label, 'model') ?? model) === model,
    )
  }

  /** As whom QEMU runs in the words of a security driver; undefined where libvirt has not chosen yet. */
  labelOf(model: string): string | undefined {
    const labels = elementsIn(this.#root, 'seclabel').filter(each => attributeOf(each, 'model') === model)
    return labels.map(each => textOf(elementIn(each, 'label'))).find(label => label !== undefined)
  }

  /** Another process may map the guest's memory, which vhost-user takes (libvirt asks for the same). */
  get hasSharedMemory(): boolean {
    const mode = attributeOf(elementAt(this.#root, 'memoryBacking', 'access'), 'mode')
    const cells = this.#numaCells()
    const modes = cells.length === 0 ? [mode] : cells.map(cell => attributeOf(cell, 'memAccess') ?? mode)
    return modes.every(each => each === 'shared')
  }

  /** Makes memory shared. Refuses a document that says it is to be private: that was somebody's wish. */
  shareMemory(): void {
    if (this.hasSharedMemory) return
    const existing = elementIn(this.#root, 'memoryBacking')
    const access = existing && elementIn(existing, 'access')
    const wished = [access, ...this.#numaCells()].find(
      element => (attributeOf(element, 'mode') ?? attributeOf(element, 'memAccess')) === 'private',
    )
    if (wished != null) {
      refuse(
        WHAT,
        wished,
        'its memory is private by its own words, and a vhost-user disk needs shared memory',
      )
    }
    const backing = existing ?? appendTo(this.#root, node('memoryBacking'))
    if (elementIn(backing, 'source') === undefined && elementIn(backing, 'hugepages') === undefined) {
      appendTo(backing, node('source', { type: 'memfd' }))
    }
    if (access === undefined) appendTo(backing, node('access', { mode: 'shared' }))
    else access.setAttribute('mode', 'shared')
  }

  #numaCells(): XmlElement[] {
    const numa = elementAt(this.#root, 'cpu', 'numa')
    return numa === undefined ? [] : elementsIn(numa, 'cell')
  }

  /** libvirt's disks in their order, then those of the qemu namespace, then those of the monitor. */
  disks(): DomainDisk[] {
    const monitorDisks = this.#monitorDisks().map(readMonitorDisk)
    return [...this.#diskElements().map(readDisk), ...readForeignDisks(this.commandLine()), ...monitorDisks]
  }

  /** The controllers of a type: `scsi`, `pci` …, by their index and model. */
  controllers(type: string): { readonly index: string; readonly model: string }[] {
    const devices = elementIn(this.#root, 'devices')
    return (devices === undefined ? [] : elementsIn(devices, 'controller'))
      .filter(controller => attributeOf(controller, 'type') === type)
      .map(controller => ({
        index: attributeOf(controller, 'index') ?? '',
        model: attributeOf(controller, 'model') ?? '',
      }))
  }

  /** The PCI buses that some device is on, by number. */
  occupiedBuses(): ReadonlySet<number> {
    return new Set(this.#pciAddresses().map(({ bus }) => bus))
  }

  /** A name that no disk has yet, nor one of `others`: `vdb` for virtio, `sda` for the others, `nvme0` for the qemu namespace. */
  freeTarget(bus: string, others: readonly string[] = []): string {
    const taken = new Set([...others, ...this.disks().map(({ target }) => target)])
    const prefix = bus === 'virtio' ? 'vd' : bus === 'ide' ? 'hd' : 'sd'
    for (let index = 0; ; index++) {
      const name = bus === 'nvme' ? `nvme${index}` : `${prefix}${letters(index)}`
      if (!taken.has(name)) return name
    }
  }

  /** The `<disk>` element of a target, as text. */
  diskXml(target: string): string {
    return serialize(this.#diskElement(target))
  }

  /**
   * A slot on the first PCI bus for a device that libvirt knows nothing of: a high one, since libvirt gives away the low ones. It
   * has to be said, for QEMU makes such a device before those of libvirt, and would take one that is libvirt's.
   */
  freeSlot(): number {
    const taken = new Set(
      this.#pciAddresses()
        .filter(({ bus }) => bus === 0)
        .map(({ slot }) => slot),
    )
    for (const option of this.commandLine()) taken.add(Number(parseOptions(option).get('addr')))
    for (let slot = SLOT_MAX; slot > 0; slot--) if (!taken.has(slot)) return slot
    throw new RpcError('ENOSPC', `domain ${this.name} has no free slot on its first PCI bus`)
  }

  #pciAddresses(): { readonly bus: number; readonly slot: number }[] {
    const devices = elementIn(this.#root, 'devices')
    return (devices === undefined ? [] : elementsIn(devices))
      .flatMap(device => elementsIn(device, 'address'))
      .filter(address => attributeOf(address, 'type') === 'pci')
      .map(address => ({
        bus: Number(attributeOf(address, 'bus')),
        slot: Number(attributeOf(address, 'slot')),
      }))
  }

  addDevice(device: XmlNode): void {
    appendTo(elementIn(this.#root, 'devices') ?? appendTo(this.#root, node('devices')), device)
  }

  removeDisk(target: string): void {
    const element = this.#diskElement(target)
    element.parentNode!.removeChild(element)
  }

  /** The arguments of the qemu namespace. */
  commandLine(): string[] {
    const block = elementIn(this.#root, 'commandline', QEMU_NAMESPACE)
    return block === undefined
      ? []
      : elementsIn(block, 'arg', QEMU_NAMESPACE).map(arg => attributeOf(arg, 'value') ?? '')
  }

  addNvme(disk: NvmeDisk): void {
    const namespaces = `xmlns:qemu='${QEMU_NAMESPACE}'`
    // Declared where libvirt declares it; a declaration on the element alone would do, but nobody looks for it there.
    this.#root.setAttributeNS('http://www.w3.org/2000/xmlns/', 'xmlns:qemu', QEMU_NAMESPACE)
    const block =
      elementIn(this.#root, 'commandline', QEMU_NAMESPACE) ??
      appendTo(this.#root, node('qemu:commandline'), namespaces)
    for (const value of nvmeArguments(disk)) appendTo(block, node('qemu:arg', { value }), namespaces)
  }

  /** Removes the drive of that id and the device on it, and nothing else of the arguments. */
  removeNvme(id: string): void {
    const block = elementIn(this.#root, 'commandline', QEMU_NAMESPACE)
    const args = block === undefined ? [] : elementsIn(block, 'arg', QEMU_NAMESPACE)
    const isIts = (index: number): boolean => {
      const options = parseOptions(attributeOf(args[index + 1], 'value') ?? '')
      const option = attributeOf(args[index], 'value')
      return (
        (option === '-drive' && options.get('id') === id) ||
        (option === '-device' && options.get('') === 'nvme' && options.get('drive') === id)
      )
    }
    const found = args.filter((_, index) => isIts(index) || (index > 0 && isIts(index - 1)))
    if (found.length === 0) throw noDisk(id, this)
    for (const element of found) block!.removeChild(element)
    if (elementsIn(block!).length === 0) this.#root.removeChild(block!)
  }

  /** The whole document. */
  toString(): string {
    return serializeDocument(this.#root)
  }

  /** The metadata that tell of one disk more, or one fewer; undefined when none is left. */
  monitorDisksXml(change: { readonly add: NvmeDisk } | { readonly remove: string }): string | undefined {
    const kept = this.#monitorDisks()
      .filter(element => !('remove' in change) || attributeOf(element, 'id') !== change.remove)
      .map(element => node('nvme', attributesOf(element)))
    const added = 'add' in change ? [monitorDiskNode(change.add)] : []
    if (kept.length + added.length === 0) return undefined
    return formatXml(node('disks', {}, ...kept, ...added))
  }

  #monitorDisks(): XmlElement[] {
    const metadata = elementIn(this.#root, 'metadata')
    const disks = metadata && elementIn(metadata, 'disks', MONITOR_DISKS.uri)
    return disks === undefined ? [] : elementsIn(disks, 'nvme', MONITOR_DISKS.uri)
  }

  #diskElements(): XmlElement[] {
    const devices = elementIn(this.#root, 'devices')
    return devices === undefined ? [] : elementsIn(devices, 'disk')
  }

  #diskElement(target: string): XmlElement {
    const found = this.#diskElements().find(disk => attributeOf(elementIn(disk, 'target'), 'dev') === target)
    if (found === undefined) throw noDisk(target, this)
    return found
  }
}

function noDisk(target: string, domain: DomainDocument): RpcError {
  const targets = domain.disks().map(disk => disk.target)
  return new RpcError('ENODEV', `domain ${domain.name} has no disk ${target}: ${thereAre(targets)}`)
}

function refuseElsewhere(element: XmlElement): void {
  if (element.namespaceURI === QEMU_NAMESPACE) return
  refuse(
    WHAT,
    element,
    `<${element.tagName}> counts only in the namespace '${QEMU_NAMESPACE}', not in '${element.namespaceURI}'`,
  )
}

/** a to z, aa, ab …, as disks are named. */
function letters(index: number): string {
  const rest = Math.floor(index / 26)
  return (rest === 0 ? '' : letters(rest - 1)) + String.fromCharCode(97 + (index % 26))
}

function readDisk(disk: XmlElement): DomainDisk {
  const source = elementIn(disk, 'source')
  const type = attributeOf(disk, 'type') ?? 'file'
  const target = elementIn(disk, 'target')
  return {
    type,
    device: attributeOf(disk, 'device') ?? 'disk',
    target: attributeOf(target, 'dev') ?? '',
    bus: attributeOf(target, 'bus') ?? '',
    source: source && readSource(source, type),
    protocol: attributeOf(source, 'protocol'),
    serial: textOf(elementIn(disk, 'serial')),
    isReadOnly: elementIn(disk, 'readonly') !== undefined,
    by: 'libvirt',
  }
}

function readSource(source: XmlElement, type: string): string | undefined {
  if (type === 'vhostuser') return attributeOf(source, 'path')
  if (type === 'volume') return `${attributeOf(source, 'pool')}/${attributeOf(source, 'volume')}`
  if (type === 'nvme') {
    const address = elementIn(source, 'address')
    const part = (name: string): string => (attributeOf(address, name) ?? '').replace(/^0x/, '')
    return `${part('domain')}:${part('bus')}:${part('slot')}.${part('function')}`
  }
  const names = ['file', 'dev', 'dir', 'name']
  return names.map(name => attributeOf(source, name)).find(value => value !== undefined)
}

/** NVMe controllers that were given to QEMU in its own words, with the drive each is on. */
function readForeignDisks(args: readonly string[]): DomainDisk[] {
  const valuesOf = (option: string): ReadonlyMap<string, string>[] =>
    args.flatMap((arg, index) => (arg === option ? [parseOptions(args[index + 1] ?? '')] : []))
  const drives = new Map(valuesOf('-drive').map(options => [options.get('id'), options]))
  return valuesOf('-device')
    .filter(options => options.get('') === 'nvme' && options.has('drive'))
    .map(device => {
      const id = device.get('drive')!
      const drive = drives.get(id)
      const file = drive?.get('file')
      return {
        type: file === undefined ? 'network' : file.startsWith('/dev/') ? 'block' : 'file',
        device: 'disk',
        target: id,
        bus: 'nvme',
        source: file ?? drive?.get('file.export') ?? drive?.get('file.image') ?? drive?.get('file.target'),
        protocol: drive?.get('file.driver'),
        serial: device.get('serial'),
        isReadOnly: drive?.get('readonly') === 'on',
        by: 'arguments',
      }
    })
}

const monitorDiskNode = ({ id, serial, source, isReadOnly }: NvmeDisk): XmlNode => {
  const isLocal = source.kind === 'file' || source.kind === 'block'
  return node('nvme', {
    id,
    serial,
    type: isLocal ? source.kind : 'network',
    protocol: isLocal ? undefined : source.kind,
    source: nameOf(source),
    readonly: isReadOnly ? 'yes' : undefined,
  })
}

/** Without declarations of namespaces: libvirt puts all of it into the one that it is told. */
function attributesOf(element: XmlElement): Record<string, string> {
  const all = Array.from(element.attributes).filter(({ name }) => !name.startsWith('xmlns'))
  return Object.fromEntries(all.map(({ name, value }) => [name, value]))
}

/** What `virsh domblklist` shows of such a source. */
export function nameOf(source: DiskSource): string {
  switch (source.kind) {
    case 'file':
    case 'block':
      return source.path
    case 'vhost':
      return source.socketPath
    case 'nbd':
    case 'rbd':
      return source.name
    case 'iscsi':
      return `${source.iqn}/${source.lun}`
  }
}

const readMonitorDisk = (element: XmlElement): DomainDisk => ({
  type: attributeOf(element, 'type') ?? '',
  device: 'disk',
  target: attributeOf(element, 'id') ?? '',
  bus: 'nvme',
  source: attributeOf(element, 'source'),
  protocol: attributeOf(element, 'protocol'),
  serial: attributeOf(element, 'serial'),
  isReadOnly: attributeOf(element, 'readonly') === 'yes',
  by: 'monitor',
})
