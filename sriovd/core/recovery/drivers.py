"""What drivers do about errors and resets: the tables that the audit and the ladder look into. Pure.

Rule: a driver is only in a table when its `struct pci_error_handlers` was looked at, in the modules of Linux
6.12 (those of 7.2 agree) or in the source that is named; of any other it is not known. sysfs does not show
what handlers a driver has, and a much older kernel's may have fewer.
"""

from __future__ import annotations

from collections.abc import Mapping

# Drivers with an error_detected handler, and where it is (below drivers/). Whatever lacks one and is on the
# bus below the port makes the kernel give up all of it (drivers/pci/pcie/err.c, report_error_detected).
HANDLES_ERRORS: Mapping[str, str] = {
    # PF drivers, which some VFs have too
    "4xxx": "crypto/intel/qat/qat_common/adf_aer.c",
    "LiquidIO": "net/ethernet/cavium/liquidio/lio_main.c",
    "be2net": "net/ethernet/emulex/benet/be_main.c",
    "bnx2x": "net/ethernet/broadcom/bnx2x/bnx2x_main.c",
    "bnxt_en": "net/ethernet/broadcom/bnxt/bnxt.c",
    "c3xxx": "crypto/intel/qat/qat_common/adf_aer.c",
    "c6xx": "crypto/intel/qat/qat_common/adf_aer.c",
    "cxgb4": "net/ethernet/chelsio/cxgb4/cxgb4_main.c",
    "dh895xcc": "crypto/intel/qat/qat_common/adf_aer.c",
    "fm10k": "net/ethernet/intel/fm10k/fm10k_pci.c",
    "hisi_hpre": "crypto/hisilicon/hpre/hpre_main.c",
    "hisi_sec2": "crypto/hisilicon/sec2/sec_main.c",
    "hisi_zip": "crypto/hisilicon/zip/zip_main.c",
    "hns3": "net/ethernet/hisilicon/hns3/hns3_enet.c",
    "i40e": "net/ethernet/intel/i40e/i40e_main.c",
    "ice": "net/ethernet/intel/ice/ice_main.c",
    "igb": "net/ethernet/intel/igb/igb_main.c",
    "ionic": "net/ethernet/pensando/ionic/ionic_bus_pci.c",
    "ixgbe": "net/ethernet/intel/ixgbe/ixgbe_main.c",
    "lpfc": "scsi/lpfc/lpfc_init.c",
    "mlx4_core": "net/ethernet/mellanox/mlx4/main.c",
    "mlx5_core": "net/ethernet/mellanox/mlx5/core/main.c",
    "nvme": "nvme/host/pci.c",
    "pds_core": "net/ethernet/amd/pds_core/main.c",
    "qede": "net/ethernet/qlogic/qede/qede_main.c",
    "qla2xxx": "scsi/qla2xxx/qla_os.c",
    "qlcnic": "net/ethernet/qlogic/qlcnic/qlcnic_main.c",
    "sfc": "net/ethernet/sfc/efx_common.c",
    "sfc_ef100": "net/ethernet/sfc/efx_common.c",
    "sfc_siena": "net/ethernet/sfc/siena/efx_common.c",
    # VF drivers
    "LiquidIO_VF": "net/ethernet/cavium/liquidio/lio_vf_main.c",
    "igbvf": "net/ethernet/intel/igbvf/netdev.c",
    "ixgbevf": "net/ethernet/intel/ixgbevf/ixgbevf_main.c",
    # drivers that hand a function to somebody else
    "mlx5_vfio_pci": "vfio/pci/mlx5/main.c",
    "pciback": "xen/xen-pciback/pci_stub.c",
    "vfio-pci": "vfio/pci/vfio_pci_core.c",
}

# Drivers that have none, and where that can be seen.
IGNORES_ERRORS: Mapping[str, str] = {
    "c3xxxvf": "crypto/intel/qat/qat_c3xxxvf/adf_drv.c",
    "c6xxvf": "crypto/intel/qat/qat_c62xvf/adf_drv.c",
    "cxgb4vf": "net/ethernet/chelsio/cxgb4vf/cxgb4vf_main.c",
    "dh895xccvf": "crypto/intel/qat/qat_dh895xccvf/adf_drv.c",
    "ena": "net/ethernet/amazon/ena/ena_netdev.c",
    "enic": "net/ethernet/cisco/enic/enic_main.c",
    "hinic": "net/ethernet/huawei/hinic/hinic_main.c",
    "iavf": "net/ethernet/intel/iavf/iavf_main.c",
    "idpf": "net/ethernet/intel/idpf/idpf_main.c",
    "igb_uio": "DPDK's dpdk-kmods, linux/igb_uio/igb_uio.c",
    "nfp": "net/ethernet/netronome/nfp/nfp_main.c",
    "nfp_netvf": "net/ethernet/netronome/nfp/nfp_netvf_main.c",
    "pci-pf-stub": "pci/pci-pf-stub.c",
    "pci-stub": "pci/pci-stub.c",
    "uio_pci_generic": "uio/uio_pci_generic.c",
}

# Drivers that take part in function resets (reset_prepare and reset_done): a PF on another, reset below it,
# is left broken, as was seen with igb.
SURVIVES_RESET = frozenset(
    {
        "cxgb4",
        "fm10k",
        "hisi_hpre",
        "hisi_sec2",
        "hisi_zip",
        "hns3",
        "i40e",
        "ice",
        "igbvf",
        "ionic",
        "nvme",
        "pds_core",
        "qla2xxx",
    }
)


def handles_errors(driver: str) -> bool | None:
    """Whether a function on `driver` (empty: on none) lets the kernel recover its bus; None: not known."""
    if not driver or driver in IGNORES_ERRORS:
        return False
    return True if driver in HANDLES_ERRORS else None


def survives_reset(driver: str) -> bool:
    """Whether a PF on `driver` can be reset and goes on working; one without a driver can."""
    return not driver or driver in SURVIVES_RESET
