/** What the machine needs in order to connect to a target with its own kernel. */
import type { Check } from '../finding.ts'

export const nvmeModule: Check = host => {
  const check = 'nvme-tcp module'
  switch (host.moduleState('nvme-tcp')) {
    case 'loaded':
      return { check, level: 'pass', found: 'loaded' }
    case 'loadable':
      return {
        check,
        level: 'note',
        found: 'not loaded',
        remedy: 'to connect this host to a target: modprobe nvme-tcp',
      }
    case 'absent':
      return {
        check,
        level: 'note',
        found: `not part of Linux ${host.kernelRelease} here`,
        remedy:
          'needed only to connect this host to a target: install the kernel package that has it (linux-modules-extra)',
      }
  }
}

export const nativeMultipath: Check = host => {
  const check = 'native multipath'
  const value = host.read('/sys/module/nvme_core/parameters/multipath')
  if (value === undefined) return { check, level: 'note', found: 'nvme-core is not loaded' }
  if (value === 'Y') return { check, level: 'pass', found: 'on' }
  return {
    check,
    level: 'warn',
    found: 'off: two gateways would be two devices on this host',
    remedy: 'echo "options nvme_core multipath=Y" > /etc/modprobe.d/nvme.conf, then reboot',
  }
}

export const nvmeCli: Check = host => {
  const check = 'nvme-cli'
  const found = host.program('nvme')
  if (found !== undefined) return { check, level: 'pass', found }
  return {
    check,
    level: 'note',
    found: 'not installed',
    remedy: 'to connect this host to a target: apt-get install nvme-cli (or dnf, zypper)',
  }
}
