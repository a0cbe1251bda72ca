"""Git for arrays, on IPFS: a content-addressable chunk store for Zarr on IPLD."""
