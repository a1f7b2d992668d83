// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net"
	"net/url"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// managerConfig says how an operator's command reaches a manager.
type managerConfig struct {
	ConnectTo        string        `flag:"connect-to" env:"NSM_CONNECT_TO" default:"unix:///var/lib/networkservicemesh/nsm.io.sock" help:"URL of the manager"`
	DialTimeout      time.Duration `flag:"dial-timeout" env:"NSM_DIAL_TIMEOUT" default:"5s" help:"limit for getting an identity and reaching the manager"`
	RequestTimeout   time.Duration `flag:"request-timeout" env:"NSM_REQUEST_TIMEOUT" default:"15s" help:"limit of one call; a watch has none"`
	MaxTokenLifetime time.Duration `flag:"max-token-lifetime" env:"NSM_MAX_TOKEN_LIFETIME" default:"10m" help:"how long a token is valid"`
}

// adminConn is an open admin API. Its holder closes it.
type adminConn struct {
	adminv1.AdminClient
	close func() error
}

// connectManager opens the admin API of the manager under the identity of this
// process. It fails within moments when nobody listens, so that a forgotten
// 'nsm up' does not look like a slow one.
func connectManager(ctx context.Context, to managerConfig) (*adminConn, error) {
	if err := probe(ctx, to.ConnectTo); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, to.DialTimeout)
	defer cancel()
	source, err := identity.Open(ctx, identity.Config{})
	if err != nil {
		return nil, err
	}
	client, _ := rpc.MutualTLS(source, source)
	conn, err := rpc.Dial(to.ConnectTo, rpc.DialOptions{
		Credentials: client,
		Tokens:      token.NewGenerator(source, to.MaxTokenLifetime),
	})
	if err != nil {
		return nil, errors.Join(err, source.Close())
	}
	if err := awaitConnected(ctx, conn, to.ConnectTo); err != nil {
		return nil, errors.Join(err, conn.Close(), source.Close())
	}
	return &adminConn{
		AdminClient: adminv1.NewAdminClient(conn),
		close:       func() error { return errors.Join(conn.Close(), source.Close()) },
	}, nil
}

// probe fails if a Unix socket has no listener. Other URLs are left to Dial,
// which also says what is wrong with a malformed one.
func probe(ctx context.Context, rawURL string) error {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "unix" {
		return nil
	}
	c, err := new(net.Dialer).DialContext(ctx, "unix", u.Path)
	if err != nil {
		return nserr.PeerDown.Errorf("no manager at %s: %w", rawURL, err).
			WithFix("start one with 'nsm up', or name it with --connect-to")
	}
	return c.Close()
}

// workloadConn says how a workload's command reaches its node's manager.
type workloadConn struct {
	ConnectTo   string        `flag:"connect-to" env:"NSM_CONNECT_TO" default:"unix:///var/lib/networkservicemesh/nsm.io.sock" help:"URL of the node's manager"`
	DialTimeout time.Duration `flag:"dial-timeout" env:"NSM_DIAL_TIMEOUT" default:"5s" help:"limit for getting an identity and reaching the manager"`
}

// openReachable returns an identity when the manager can be reached with it.
func (c workloadConn) openReachable(ctx context.Context, id identityConfig) (identity.Source, error) {
	ctx, cancel := context.WithTimeout(ctx, c.DialTimeout)
	defer cancel()
	source, err := id.open(ctx, nil)
	if err != nil {
		return nil, err
	}
	client, _ := rpc.MutualTLS(source, source)
	conn, err := rpc.Dial(c.ConnectTo, rpc.DialOptions{Credentials: client, Tokens: token.NewGenerator(source, id.MaxTokenLifetime)})
	if err != nil {
		return nil, errors.Join(err, source.Close())
	}
	err = awaitConnected(ctx, conn, c.ConnectTo)
	_ = conn.Close()
	if err != nil {
		return nil, errors.Join(err, source.Close())
	}
	return source, nil
}

// awaitConnected waits until a connection stands, or has failed: then the first
// call says why. It fails if neither happens until ctx ends.
func awaitConnected(ctx context.Context, conn *grpc.ClientConn, url string) error {
	conn.Connect()
	for state := conn.GetState(); state == connectivity.Idle || state == connectivity.Connecting; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			return nserr.PeerDown.Errorf("the manager at %s does not answer: %w", url, context.Cause(ctx)).
				WithFix("see whether it runs, or allow more with --dial-timeout")
		}
	}
	return nil
}
