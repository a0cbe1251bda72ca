module cas_zarr/tests/ipfs/kubo

go 1.26.5

require github.com/ipfs/kubo v0.43.1

// What a release of go-libp2p was made with: Kubo replaces libp2p by a commit of a fork, which the
// module proxy does not have.
replace (
	github.com/quic-go/quic-go => github.com/quic-go/quic-go v0.60.0
	github.com/quic-go/webtransport-go => github.com/quic-go/webtransport-go v0.11.1
)
