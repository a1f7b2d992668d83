// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// MutualTLS returns credentials for both sides of connections on which each side
// shows its SVID and accepts any SVID of a trust domain that bundle knows (§2.2).
// What a peer may do is decided per call, from its identity.
//
// A client opens a new connection once its SVID has changed, since the tokens it
// sends must verify against the certificate of the connection they come over.
func MutualTLS(svid x509svid.Source, bundle x509bundle.Source) (client, server credentials.TransportCredentials) {
	clientConfig := tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeAny())
	serverConfig := tlsconfig.MTLSServerConfig(svid, bundle, tlsconfig.AuthorizeAny())
	// A resumed session would skip the verification of the peer's SVID.
	serverConfig.SessionTicketsDisabled = true
	// NewTLS adds TLS 1.2 as the least version and h2 as the protocol.
	q := newQuota()
	return &transport{credentials.NewTLS(clientConfig), svid, q}, &transport{credentials.NewTLS(serverConfig), svid, q}
}

// Plaintext returns credentials without any security, for assembling parts in
// tests. Descriptors pass as over TLS. No command-line flag leads here.
func Plaintext() (client, server credentials.TransportCredentials) {
	q := newQuota()
	return &transport{insecure.NewCredentials(), nil, q}, &transport{insecure.NewCredentials(), nil, q}
}

// transport puts a fileConn below other credentials when the connection is a Unix
// socket, and a linkInfo around their AuthInfo.
type transport struct {
	credentials.TransportCredentials
	svid  x509svid.Source // nil for plaintext
	quota *quota
}

func (t *transport) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return t.handshake(raw, func(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
		conn, info, err := t.TransportCredentials.ClientHandshake(ctx, authority, c)
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("whoever listens there says nothing: %w", err)
		}
		return conn, info, err
	})
}

func (t *transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return t.handshake(raw, t.TransportCredentials.ServerHandshake)
}

func (t *transport) handshake(raw net.Conn, inner func(net.Conn) (net.Conn, credentials.AuthInfo, error)) (net.Conn, credentials.AuthInfo, error) {
	u, ok := raw.(*net.UnixConn)
	if !ok {
		return inner(raw)
	}
	fc, err := newFileConn(u, t.quota)
	if err != nil {
		u.Close()
		return nil, nil, err
	}
	var conn net.Conn
	var info credentials.AuthInfo
	err = fc.handshake(func() (err error) {
		conn, info, err = inner(fc)
		return err
	})
	if err != nil {
		fc.Close()
		return nil, nil, err
	}
	return conn, linkInfo{info, &link{send: fc.send, inbox: fc.inbox, sender: fc.sender}}, nil
}

func (t *transport) Clone() credentials.TransportCredentials {
	return &transport{t.TransportCredentials.Clone(), t.svid, t.quota}
}

// leaf returns the certificate that a handshake would show now, nil when there is none.
func (t *transport) leaf() *x509.Certificate {
	if t.svid == nil {
		return nil
	}
	svid, err := t.svid.GetX509SVID()
	if err != nil || len(svid.Certificates) == 0 {
		return nil
	}
	return svid.Certificates[0]
}

// linkInfo is the AuthInfo of a connection that passes descriptors. It says what
// the wrapped one says.
type linkInfo struct {
	credentials.AuthInfo
	link *link
}

// GetCommonAuthInfo is what gRPC asks before it sends credentials.
func (i linkInfo) GetCommonAuthInfo() credentials.CommonAuthInfo {
	if c, ok := i.AuthInfo.(interface {
		GetCommonAuthInfo() credentials.CommonAuthInfo
	}); ok {
		return c.GetCommonAuthInfo()
	}
	return credentials.CommonAuthInfo{}
}

// peerCert returns the leaf that the other side showed, nil on plaintext.
func peerCert(info credentials.AuthInfo) *x509.Certificate {
	switch i := info.(type) {
	case linkInfo:
		return peerCert(i.AuthInfo)
	case localInfo:
		return i.cert
	case credentials.TLSInfo:
		if certs := i.State.PeerCertificates; len(certs) > 0 {
			return certs[0]
		}
	}
	return nil
}

// linkOf returns the way descriptors go, nil for a connection without one.
func linkOf(info credentials.AuthInfo) *link {
	switch i := info.(type) {
	case linkInfo:
		return i.link
	case localInfo:
		return i.link
	}
	return nil
}
