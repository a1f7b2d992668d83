// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"crypto/x509"

	"google.golang.org/grpc/peer"
)

// PeerCert returns the certificate of whoever answered a call made with
// grpc.Peer(p), nil on plaintext.
func PeerCert(p *peer.Peer) *x509.Certificate { return peerCert(p.AuthInfo) }
