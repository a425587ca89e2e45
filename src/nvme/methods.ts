/** The RPC methods of the NVMe host: a new one is one more line. */
import { bdevNvmeAttachController, bdevNvmeDetachController } from './methods/attach.ts'
import {
  bdevNvmeDisableController,
  bdevNvmeEnableController,
  bdevNvmeResetController,
  bdevNvmeSetMultipathPolicy,
  bdevNvmeSetPreferredPath,
} from './methods/control.ts'
import {
  bdevNvmeGetDiscoveryInfo,
  bdevNvmeStartDiscovery,
  bdevNvmeStopDiscovery,
} from './methods/discovery.ts'
import { bdevNvmeSetOptions } from './methods/options.ts'
import {
  bdevNvmeGetControllerHealthInfo,
  bdevNvmeGetControllers,
  bdevNvmeGetIoPaths,
  bdevNvmeGetPathIostat,
} from './methods/query.ts'

export const nvmeMethods = [
  bdevNvmeSetOptions,
  bdevNvmeAttachController,
  bdevNvmeDetachController,
  bdevNvmeGetControllers,
  bdevNvmeResetController,
  bdevNvmeEnableController,
  bdevNvmeDisableController,
  bdevNvmeSetMultipathPolicy,
  bdevNvmeSetPreferredPath,
  bdevNvmeGetIoPaths,
  bdevNvmeGetPathIostat,
  bdevNvmeGetControllerHealthInfo,
  bdevNvmeStartDiscovery,
  bdevNvmeStopDiscovery,
  bdevNvmeGetDiscoveryInfo,
]
