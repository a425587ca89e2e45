/** Every network that a guest on this machine can have. */
import { networkInterfaces } from 'node:os'
import { RpcError } from '../../core/errors.ts'
import { ProgramError } from '../../core/program.ts'
import { Virsh } from '../../libvirt/virsh.ts'
import type { Host } from '../host.ts'
import type { GuestNetwork } from './guest-network.ts'
import { type Addresses, hostNetworks, openVSwitches } from './host-networks.ts'
import { libvirtNetwork } from './libvirt-networks.ts'

export interface Networks {
  readonly networks: readonly GuestNetwork[]
  /** Who could not be asked, and why. */
  readonly silent: readonly string[]
}

/**
 * The networks of libvirt and of the host. Without libvirt, or without Open vSwitch, the others are told all the same.
 * `uri`: which libvirt is asked; undefined for virsh's own choice.
 */
export async function findNetworks(host: Host, uri: string | undefined): Promise<Networks> {
  const silent: string[] = []
  const unlessSilent = async <T>(ask: Promise<T[]>): Promise<T[]> => {
    try {
      return await ask
    } catch (error) {
      if (!(error instanceof RpcError || error instanceof ProgramError)) throw error
      silent.push(error.message)
      return []
    }
  }
  const [virtual, switches] = await Promise.all([
    unlessSilent(new Virsh(uri).networks()),
    unlessSilent(openVSwitches()),
  ])
  const ofLibvirt = virtual.map(libvirtNetwork)
  const bridges = new Set(ofLibvirt.filter(({ kind }) => kind !== 'bridge').map(({ device }) => device))
  return { networks: [...ofLibvirt, ...hostNetworks(host, hostAddresses(), bridges, switches)], silent }
}

/** Addresses that mean something beyond this machine and this link. */
function hostAddresses(): Addresses {
  return Object.fromEntries(
    Object.entries(networkInterfaces()).map(([name, all = []]) => [
      name,
      all.flatMap(({ cidr, scopeid }) => (cidr === null || scopeid ? [] : [cidr])),
    ]),
  )
}
