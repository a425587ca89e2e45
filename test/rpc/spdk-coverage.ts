/** How this daemon's methods relate to SPDK's 296: what is missing and why, and where a shared method differs and why. */

import type { Declarations } from '../../src/rpc/method.ts'

export type Status = 'planned' | 'not applicable'

export interface Missing {
  readonly status: Status
  readonly reason: string
  readonly methods: readonly string[]
}

const missing = (status: Status, reason: string, methods: string): Missing => ({
  status,
  reason,
  methods: methods.trim().split(/\s+/),
})

export const MISSING: readonly Missing[] = [
  missing(
    'planned',
    'Volumes: thin provisioning, snapshots, clones.',
    `bdev_lvol_create_lvstore bdev_lvol_delete_lvstore bdev_lvol_get_lvstores bdev_lvol_rename_lvstore
     bdev_lvol_grow_lvstore bdev_lvol_create bdev_lvol_snapshot bdev_lvol_clone bdev_lvol_clone_bdev bdev_lvol_rename
     bdev_lvol_resize bdev_lvol_set_read_only bdev_lvol_delete bdev_lvol_inflate bdev_lvol_decouple_parent
     bdev_lvol_get_lvols bdev_lvol_set_parent bdev_lvol_set_parent_bdev bdev_lvol_start_shallow_copy
     bdev_lvol_check_shallow_copy`,
  ),
  missing(
    'planned',
    'Filters: mirror and stripe, split, encryption.',
    `bdev_raid_set_options bdev_raid_get_bdevs bdev_raid_create bdev_raid_delete bdev_raid_add_base_bdev
     bdev_raid_remove_base_bdev bdev_split_create bdev_split_delete bdev_crypto_create bdev_crypto_delete
     accel_crypto_key_create accel_crypto_key_destroy accel_crypto_keys_get`,
  ),
  missing(
    'planned',
    'The iSCSI front end.',
    `iscsi_set_options iscsi_get_options scsi_get_devices iscsi_set_discovery_auth iscsi_create_auth_group
     iscsi_delete_auth_group iscsi_get_auth_groups iscsi_auth_group_add_secret iscsi_auth_group_remove_secret
     iscsi_get_initiator_groups iscsi_create_initiator_group iscsi_delete_initiator_group
     iscsi_initiator_group_add_initiators iscsi_initiator_group_remove_initiators iscsi_get_target_nodes
     iscsi_create_target_node iscsi_target_node_set_auth iscsi_target_node_add_pg_ig_maps
     iscsi_target_node_remove_pg_ig_maps iscsi_delete_target_node iscsi_get_portal_groups iscsi_create_portal_group
     iscsi_start_portal_group iscsi_delete_portal_group iscsi_portal_group_set_auth iscsi_get_connections
     iscsi_get_stats iscsi_target_node_add_lun iscsi_target_node_set_redirect iscsi_target_node_request_logout
     iscsi_enable_histogram iscsi_get_histogram`,
  ),
  missing(
    'planned',
    'Authentication and TLS: keys by name, DH-HMAC-CHAP.',
    `keyring_file_add_key keyring_file_remove_key keyring_get_keys keyring_linux_set_options nvmf_subsystem_set_keys
     bdev_nvme_set_keys`,
  ),
  missing(
    'planned',
    'Limits and latency histograms of devices.',
    `bdev_set_qos_limit bdev_enable_histogram bdev_get_histogram bdev_get_histogram_borders`,
  ),
  missing(
    'planned',
    'Raw commands and injected errors on the NVMe host.',
    `bdev_nvme_send_cmd bdev_nvme_add_error_injection bdev_nvme_remove_error_injection
     bdev_nvme_get_transport_statistics`,
  ),
  missing(
    'planned',
    "Devices of the host's own kernel. They need its nbd or ublk driver; nbd_export_start serves any NBD client.",
    `nbd_start_disk nbd_stop_disk nbd_get_disks ublk_create_target ublk_destroy_target ublk_start_disk
     ublk_recover_disk ublk_stop_disk ublk_get_disks`,
  ),
  missing(
    'planned',
    'Trace points and a closer look at threads.',
    `trace_enable_tpoint_group trace_disable_tpoint_group trace_set_tpoint_mask trace_clear_tpoint_mask
     trace_get_tpoint_group_mask trace_clear trace_get_info thread_get_pollers thread_get_io_channels
     framework_monitor_context_switch`,
  ),
  missing(
    'not applicable',
    'Reactors sleep when idle and the kernel schedules them: no scheduler, governor or core locks of our own.',
    `framework_set_scheduler framework_get_scheduler framework_get_governor scheduler_set_options
     framework_enable_cpumask_locks framework_disable_cpumask_locks thread_set_cpumask`,
  ),
  missing(
    'not applicable',
    'No DPDK and no huge pages: buffers are sized by themselves, sockets are the kernel’s through io_uring.',
    `env_dpdk_get_mem_stats iobuf_set_options iobuf_get_stats sock_impl_get_options sock_impl_set_options
     sock_set_default_impl sock_get_default_impl`,
  ),
  missing(
    'not applicable',
    'No driver touches PCI hardware: local NVMe devices are opened through the kernel (bdev_uring_create).',
    `framework_get_pci_devices bdev_nvme_set_hotplug bdev_nvme_cuse_register
     bdev_nvme_cuse_unregister bdev_nvme_apply_firmware bdev_nvme_opal_init bdev_nvme_opal_revert bdev_opal_create
     bdev_opal_get_info bdev_opal_delete bdev_opal_new_user bdev_opal_set_lock_state vmd_enable vmd_remove_device
     vmd_rescan`,
  ),
  missing(
    'not applicable',
    'Offload engines of particular hardware.',
    `accel_get_module_info accel_get_opc_assignments accel_assign_opc accel_set_driver accel_set_options
     accel_get_stats accel_error_inject_error compressdev_scan_accel_module dsa_scan_accel_module
     iaa_scan_accel_module ioat_scan_accel_module ae4dma_scan_accel_module dpdk_cryptodev_scan_accel_module
     dpdk_cryptodev_set_driver dpdk_cryptodev_get_driver mlx5_scan_accel_module accel_mlx5_dump_stats
     cuda_scan_accel_module`,
  ),
  missing(
    'not applicable',
    'Modules that stand on libraries or media of their own: OCF, FTL, zones, xNVMe, DAOS, file systems.',
    `bdev_ocf_create bdev_ocf_delete bdev_ocf_get_stats bdev_ocf_reset_stats bdev_ocf_get_bdevs
     bdev_ocf_set_cache_mode bdev_ocf_set_seqcutoff bdev_ocf_flush_start bdev_ocf_flush_status bdev_zone_block_create
     bdev_zone_block_delete bdev_ftl_create bdev_ftl_delete bdev_ftl_unmap bdev_ftl_get_stats
     bdev_ftl_get_properties bdev_ftl_set_property bdev_xnvme_create bdev_xnvme_delete bdev_daos_create
     bdev_daos_delete bdev_daos_resize fsdev_get_opts fsdev_set_opts fsdev_aio_create fsdev_aio_delete`,
  ),
  missing(
    'not applicable',
    'vfio-user end points: guests get vhost-user instead.',
    `vfu_tgt_set_base_path vfu_virtio_delete_endpoint vfu_virtio_create_blk_endpoint vfu_virtio_scsi_add_target
     vfu_virtio_scsi_remove_target vfu_virtio_create_scsi_endpoint vfu_virtio_create_fs_endpoint`,
  ),
  missing(
    'not applicable',
    'mDNS needs an Avahi daemon; the discovery service does the same for a known address.',
    `bdev_nvme_start_mdns_discovery bdev_nvme_stop_mdns_discovery bdev_nvme_get_mdns_discovery_info
     nvmf_publish_mdns_prr nvmf_stop_mdns_prr`,
  ),
  missing(
    'not applicable',
    'Private in SPDK: a daemon here has one target.',
    'nvmf_create_target nvmf_delete_target',
  ),
]

/** Methods that SPDK does not have. */
export const OWN =
  /^(rpc\.discover|nbd_export_|nbd_qemu_args$|vhost_(controller_set_polling|set_options|get_stats|qemu_args|libvirt_xml)$|bdev_plugin_|bdev_driver_|bdev_qcow2_|bdev_rbd_(open$|snapshot_|clone$|flatten$)|rbd_cache_explain$|workload_|job_|config_|gateway_|pool_|volume_|secret_|net_|vm_)/

export interface Difference {
  readonly method: string
  readonly param: string
  readonly kind: 'only here' | 'other type' | 'other values' | 'not required here' | 'required here'
  readonly reason: string
}

const differs = (method: string, param: string, kind: Difference['kind'], reason: string): Difference => ({
  method,
  param,
  kind,
  reason,
})

/** Every difference between a method here and SPDK's schema of it that is meant to be. */
export const DIFFERENCES: readonly Difference[] = [
  differs('bdev_aio_create', 'direct', 'only here', 'One file driver, with and without the page cache.'),
  differs('bdev_uring_create', 'direct', 'only here', 'One file driver, with and without the page cache.'),
  ...['vhost_create_blk_controller', 'vhost_create_scsi_controller'].flatMap(method => [
    differs(method, 'socket_mode', 'only here', 'A QEMU without privileges must reach the socket.'),
    differs(method, 'socket_owner', 'only here', 'A QEMU without privileges must reach the socket.'),
  ]),
  differs(
    'bdev_virtio_attach_controller',
    'packed_ring',
    'only here',
    'Drives the packed rings of a back end too.',
  ),
  differs(
    'bdev_rbd_register_cluster',
    'config_param',
    'other type',
    "An object, as SPDK's decoder takes it; its schema says text.",
  ),
  differs(
    'bdev_rbd_create',
    'config',
    'other type',
    "An object, as SPDK's decoder takes it; its schema says text.",
  ),
  differs('bdev_rbd_create', 'namespace', 'only here', 'Images in a namespace of their pool.'),
  differs('bdev_rbd_create', 'snapshot', 'only here', 'Snapshots, opened read only.'),
]

const implemented = (table: Declarations): string[] =>
  table.map(({ name }) => name).filter(name => !OWN.test(name))

export function summarize(table: Declarations): string {
  const count = (status: Status): number =>
    MISSING.filter(each => each.status === status).flatMap(each => each.methods).length
  const [here, planned, never] = [implemented(table).length, count('planned'), count('not applicable')]
  return `SPDK has ${here + planned + never} methods: ${here} implemented, ${planned} planned, ${never} not applicable.`
}

/** docs/reference/spdk.md */
export function renderCoverage(table: Declarations): string {
  const code = (names: readonly string[]): string => names.map(name => `\`${name}\``).join(', ')
  const rows = (status: Status): string[] =>
    MISSING.filter(each => each.status === status).map(each => `| ${each.reason} | ${code(each.methods)} |`)
  return [
    '<!-- Made from test/rpc/spdk-coverage.ts by `npm run docs`. Do not edit. -->\n',
    "# SPDK's methods\n",
    `${summarize(table)} Counted against the schema of SPDK 26.09-pre (August 2026).\n`,
    '## Implemented\n',
    `${code(implemented(table))}\n`,
    'They take the same parameters of the same types, with these exceptions:\n',
    '| method | parameter | | why |',
    '|---|---|---|---|',
    ...DIFFERENCES.map(
      ({ method, param, kind, reason }) => `| \`${method}\` | \`${param}\` | ${kind} | ${reason} |`,
    ),
    '\nWhat an option means here, where it means little, its line in the [reference](rpc.md) says.\n',
    '## Planned\n',
    '| for | methods |',
    '|---|---|',
    ...rows('planned'),
    '\n## Not applicable\n',
    '| why | methods |',
    '|---|---|',
    ...rows('not applicable'),
    '\n## Only here\n',
    `${code(table.map(({ name }) => name).filter(name => OWN.test(name)))}\n`,
  ].join('\n')
}
