/** Every method of the daemon, one list a layer. A new method is one more name in the list of its own layer. */
import { iscsiMethods } from '../bdev/drivers/iscsi/methods.ts'
import { bdevMethods } from '../bdev/methods.ts'
import { gatewayMethods } from '../gateway/methods.ts'
import { hostMethods } from '../host/methods.ts'
import { nbdMethods } from '../nbd/methods.ts'
import { nvmeMethods } from '../nvme/methods.ts'
import { nvmfMethods } from '../nvmf/methods.ts'
import { rbdMethods } from '../rbd/methods.ts'
import { introspectionMethods } from '../rpc/introspection.ts'
import { jobMethods } from '../rpc/job-methods.ts'
import type { MethodTable } from '../rpc/method.ts'
import { vhostMethods } from '../vhost/methods.ts'
import { virtioMethods } from '../virtio/methods.ts'
import { vmMethods } from '../vm/methods.ts'
import { storageMethods } from '../volume/methods.ts'
import { workloadMethods } from '../workload/methods.ts'
import type { AppContext } from './daemon.ts'
import { configMethods } from './methods/config.ts'
import { frameworkMethods } from './methods/framework.ts'
import { logMethods } from './methods/log.ts'
import { notifyMethods } from './methods/notify.ts'

export const methods = [
  ...introspectionMethods,
  ...frameworkMethods,
  ...configMethods,
  ...logMethods,
  ...notifyMethods,
  ...jobMethods,
  ...bdevMethods,
  ...nvmfMethods,
  ...nvmeMethods,
  ...rbdMethods,
  ...gatewayMethods,
  ...virtioMethods,
  ...iscsiMethods,
  ...vhostMethods,
  ...nbdMethods,
  ...storageMethods,
  ...hostMethods,
  ...vmMethods,
  ...workloadMethods,
] satisfies MethodTable<AppContext>
