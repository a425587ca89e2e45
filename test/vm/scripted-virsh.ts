import { ProgramError } from '../../src/core/program.ts'
import type { RunProgram } from '../../src/libvirt/virsh.ts'

export const DOMAIN = `<domain type='qemu'>
  <name>g1</name>
  <os><type machine='pc-q35-7.2'>hvm</type></os>
  <devices>
    <controller type='pci' index='1' model='pcie-root-port'/>
    <controller type='pci' index='2' model='pcie-root-port'/>
    <disk type='file' device='disk'><source file='/a'/><target dev='vda' bus='virtio'/></disk>
  </devices>
</domain>`

/** A virsh that keeps the documents of one domain, and can be told to refuse. */
export class ScriptedVirsh {
  state = 'running'
  config = DOMAIN
  live = DOMAIN
  confinement = 'none'
  /** How often QEMU still has a block node in use that it shall delete. */
  lateNodes = 0
  readonly ran: string[] = []
  /** What it complains of when a command has this in it. */
  readonly refusals = new Map<string, string>()

  readonly run: RunProgram = async (program, args, options) => {
    if (program !== 'virsh') throw new ProgramError(program, args, 'none', NONE)
    const words = args.filter(word => word !== '--quiet' && word !== '--' && !word.startsWith('/dev/'))
    const line = words.join(' ')
    this.ran.push(line)
    for (const [part, complaint] of this.refusals) {
      if (!line.includes(part)) continue
      throw new ProgramError(program, args, complaint, { exitCode: 1, stderr: `error: ${complaint}` })
    }
    return this.#answer(words, options?.input ?? '')
  }

  #answer(words: readonly string[], input: string): string {
    switch (words[0]) {
      case 'dominfo':
        return `Name:           g1\nState:          ${this.state}\nPersistent:     yes\n`
      case 'dumpxml':
        return words.includes('--inactive') ? this.config : this.live
      case 'list':
        return '7e4d0a6c-0000-4000-8000-000000000001\n'
      case 'capabilities':
        return `<capabilities><host><secmodel><model>${this.confinement}</model></secmodel></host></capabilities>`
      case 'define':
        this.config = input
        return ''
      case 'qemu-monitor-command':
        return JSON.stringify(this.#qemu(JSON.parse(words[2]!)))
      default:
        return ''
    }
  }

  #qemu({ execute, arguments: given }: { execute: string; arguments: { bus?: string } }): object {
    // The last port has a device that libvirt does not know of.
    if (execute === 'device_add' && given.bus === 'pci.2') {
      return { error: { desc: 'PCI: slot 0 function 0 not available for nvme, in use by nvme' } }
    }
    // A device that has just gone still has its node for a moment.
    if (execute === 'blockdev-del' && this.lateNodes-- > 0) {
      return { error: { desc: 'Node qpair-nvme0 is in use' } }
    }
    return { return: execute === 'qom-list' ? [{ name: 'type' }] : {} }
  }

  /** Commands that change something. */
  get changes(): string[] {
    return this.ran.filter(line => !/^(?:list|dominfo|dumpxml|capabilities)/.test(line))
  }
}

export const NONE = { exitCode: null, stderr: '', isMissing: true }
