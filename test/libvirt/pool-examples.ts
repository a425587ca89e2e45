/** Documents of storage pools, one at least of each type, as administrators have them at hand. */

/** With what libvirt fills in, so that what is written equals what is read. */
export const POOLS: Readonly<Record<string, string>> = {
  dir: `<pool type='dir'>
  <name>virtimages</name>
  <uuid>70a7eb15-6c34-ee9c-bf57-69e8e5ff3fb2</uuid>
  <source/>
  <target>
    <path>/var/lib/libvirt/images</path>
    <permissions>
      <mode>0755</mode>
      <owner>107</owner>
      <group>107</group>
      <label>system_u:object_r:virt_image_t:s0</label>
    </permissions>
  </target>
</pool>
`,
  'dir without copy on write': `<pool type='dir'>
  <name>btrfs</name>
  <uuid>70a7eb15-6c34-ee9c-bf57-69e8e5ff3fb3</uuid>
  <features>
    <cow state='no'/>
  </features>
  <source/>
  <target>
    <path>/srv/btrfs</path>
  </target>
</pool>
`,
  fs: `<pool type='fs'>
  <name>archive</name>
  <uuid>6bf80895-10b6-75a6-6059-89fdea2aefb7</uuid>
  <source>
    <device path='/dev/disk/by-uuid/4c6ca8d2-1c85-4eb4-9b0d-39e7c1c7b2a0'/>
    <format type='xfs'/>
  </source>
  <target>
    <path>/srv/archive</path>
  </target>
</pool>
`,
  'fs with mount options': `<pool type='fs' xmlns:fs='http://libvirt.org/schemas/storagepool/fs/1.0'>
  <name>lazy</name>
  <uuid>6bf80895-10b6-75a6-6059-89fdea2aefb8</uuid>
  <source>
    <device path='/dev/vdz'/>
    <format type='auto'/>
  </source>
  <target>
    <path>/srv/lazy</path>
  </target>
  <fs:mount_opts>
    <fs:option name='noatime'/>
    <fs:option name='lazytime'/>
  </fs:mount_opts>
</pool>
`,
  netfs: `<pool type='netfs'>
  <name>nfsimages</name>
  <uuid>7641d5a8-af11-f730-a34e-0a7dfcede71f</uuid>
  <source>
    <host name='storage.example.org' port='2049'/>
    <dir path='/exports/images'/>
    <format type='nfs'/>
    <protocol ver='4'/>
    <vendor name='Acme'/>
    <product name='Filer &amp; Co'/>
  </source>
  <target>
    <path>/srv/images</path>
  </target>
</pool>
`,
  'netfs of a Samba share': `<pool type='netfs'>
  <name>share</name>
  <uuid>7641d5a8-af11-f730-a34e-0a7dfcede720</uuid>
  <source>
    <host name='storage.example.org'/>
    <dir path='images'/>
    <format type='cifs'/>
  </source>
  <target>
    <path>/srv/share</path>
  </target>
</pool>
`,
  logical: `<pool type='logical'>
  <name>guests</name>
  <uuid>1c13165a-d0f4-3aee-b447-30fb38789091</uuid>
  <source>
    <device path='/dev/sdu1'/>
    <device path='/dev/sdu2'/>
    <name>HostVG</name>
    <format type='lvm2'/>
  </source>
  <target>
    <path>/dev/HostVG</path>
  </target>
</pool>
`,
  disk: `<pool type='disk'>
  <name>partitions</name>
  <uuid>2aa2b1ba-6e0f-4d4b-a68f-9a3f4f0e4cd6</uuid>
  <source>
    <device path='/dev/mapper/mpatha' part_separator='no'/>
    <format type='gpt'/>
  </source>
  <target>
    <path>/dev/disk/by-path</path>
  </target>
</pool>
`,
  iscsi: `<pool type='iscsi'>
  <name>san</name>
  <uuid>e9392370-2917-565e-692b-d057f46512d6</uuid>
  <source>
    <host name='iscsi.example.com' port='3260'/>
    <device path='iqn.2013-06.com.example:iscsi-pool'/>
    <initiator>
      <iqn name='iqn.2013-06.com.example:initiator'/>
    </initiator>
    <auth type='chap' username='myuser'>
      <secret usage='libvirtiscsi'/>
    </auth>
    <vendor name='test-vendor'/>
  </source>
  <target>
    <path>/dev/disk/by-path</path>
  </target>
</pool>
`,
  'iscsi-direct': `<pool type='iscsi-direct'>
  <name>direct</name>
  <uuid>e9392370-2917-565e-692b-d057f46512d7</uuid>
  <source>
    <host name='iscsi.example.com'/>
    <device path='iqn.2013-06.com.example:iscsi-pool'/>
    <initiator>
      <iqn name='iqn.2013-06.com.example:iscsi-initiator'/>
    </initiator>
  </source>
</pool>
`,
  scsi: `<pool type='scsi'>
  <name>hba0</name>
  <uuid>e9392370-2917-565e-692b-d057f46512d8</uuid>
  <source>
    <adapter type='scsi_host' name='scsi_host0'/>
  </source>
  <target>
    <path>/dev/disk/by-path</path>
  </target>
</pool>
`,
  'scsi by address': `<pool type='scsi'>
  <name>hba1</name>
  <uuid>e9392370-2917-565e-692b-d057f46512d9</uuid>
  <source>
    <adapter type='scsi_host'>
      <parentaddr unique_id='5'>
        <address domain='0x0000' bus='0x00' slot='0x1f' function='0x2'/>
      </parentaddr>
    </adapter>
  </source>
  <target>
    <path>/dev/disk/by-path</path>
    <permissions>
      <mode>0700</mode>
      <owner>0</owner>
      <group>0</group>
    </permissions>
  </target>
</pool>
`,
  'scsi of Fibre Channel': `<pool type='scsi'>
  <name>vhba</name>
  <uuid>e9392370-2917-565e-692b-d057f46512da</uuid>
  <source>
    <adapter type='fc_host' parent='scsi_host3' managed='yes' wwnn='20000000c9831b4b' wwpn='10000000c9831b4b'/>
  </source>
  <target>
    <path>/dev/disk/by-path</path>
  </target>
</pool>
`,
  mpath: `<pool type='mpath'>
  <name>multipath</name>
  <uuid>e9392370-2917-565e-692b-d057f46512db</uuid>
  <source/>
  <target>
    <path>/dev/mapper</path>
  </target>
</pool>
`,
  rbd: `<pool type='rbd'>
  <name>ceph</name>
  <uuid>47c1faee-0207-e741-f5ae-d9b019b98fe2</uuid>
  <source>
    <host name='mon1.example.org' port='6789'/>
    <host name='2001:db8::17' port='6789'/>
    <name>rbd</name>
    <auth type='ceph' username='admin'>
      <secret uuid='2ec115d7-3a88-3ceb-bc12-0ac909a6fd87'/>
    </auth>
  </source>
  <refresh>
    <volume allocation='capacity'/>
  </refresh>
</pool>
`,
  'rbd with options': `<pool type='rbd' xmlns:rbd='http://libvirt.org/schemas/storagepool/rbd/1.0'>
  <name>slow-ceph</name>
  <uuid>47c1faee-0207-e741-f5ae-d9b019b98fe3</uuid>
  <source>
    <host name='localhost'/>
    <name>rbd</name>
  </source>
  <rbd:config_opts>
    <rbd:option name='client_mount_timeout' value='45'/>
    <rbd:option name='rados_mon_op_timeout' value='20'/>
  </rbd:config_opts>
</pool>
`,
  sheepdog: `<pool type='sheepdog'>
  <name>sheep</name>
  <uuid>65fcba04-5b13-bd93-cff3-52ce48e11ad7</uuid>
  <source>
    <host name='localhost' port='7000'/>
    <name>sheepdog</name>
  </source>
</pool>
`,
  gluster: `<pool type='gluster'>
  <name>bricks</name>
  <uuid>65fcba04-5b13-bd93-cff3-52ce48e11ad8</uuid>
  <source>
    <host name='gluster.example.org'/>
    <dir path='/images'/>
    <name>volume0</name>
  </source>
</pool>
`,
  zfs: `<pool type='zfs'>
  <name>tank-guests</name>
  <uuid>429126d2-f4bb-45b0-b336-2e81dc6d241c</uuid>
  <source>
    <device path='/dev/ada1'/>
    <name>tank</name>
  </source>
  <target>
    <path>/dev/zvol/tank</path>
  </target>
</pool>
`,
  vstorage: `<pool type='vstorage'>
  <name>vz</name>
  <uuid>49802700-b9a2-4a20-8d6b-4c8b5a8d3a4e</uuid>
  <source>
    <name>cluster1</name>
  </source>
  <target>
    <path>/mnt/vz</path>
    <permissions>
      <mode>0700</mode>
      <owner>0</owner>
      <group>0</group>
    </permissions>
  </target>
</pool>
`,
}

/** The documents that guides on storage hand out, with their addresses. */
export const GUIDES = {
  netfs: `<pool type='netfs'>
  <name>nfs-pool</name>
  <source>
    <host name='192.168.159.144'/>
    <dir path='/mnt/packtStratisXF501'/>
    <format type='auto'/>
  </source>
  <target>
    <path>/var/lib/libvirt/images/nfs-pool</path>
    <permissions>
      <mode>0755</mode>
      <owner>0</owner>
      <group>0</group>
      <label>system_u:object_r:nfs_t:s0</label>
    </permissions>
  </target>
</pool>
`,
  gluster: `<pool type='dir'>
  <name>glusterfs-pool</name>
  <source>
  </source>
  <target>
    <path>/var/lib/libvirt/images/GlusterFS</path>
    <permissions>
      <mode>0755</mode>
      <owner>107</owner>
      <group>107</group>
      <label>system_u:object_r:fusefs_t:s0</label>
    </permissions>
  </target>
</pool>
`,
  secret: `<secret ephemeral='no' private='no'>
  <usage type='ceph'>
    <name>client.KVMpool secret</name>
  </usage>
</secret>
`,
  rbd: `<pool type='rbd'>
  <source>
    <name>KVMpool</name>
    <host name='192.168.159.151' port='6789' />
    <auth username='KVMpool' type='ceph'>
      <secret uuid='095b7aa1-5f2c-4b2a-9b8a-7ad2a2e2a5f6'/>
    </auth>
  </source>
</pool>
`,
} as const
