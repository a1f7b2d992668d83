// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/identity/agent"
	"github.com/openvwire/nsm/sdk/identity/authority"
)

// authoritySettings are those of a node's source of identities wherever it runs.
type authoritySettings struct {
	Node        string        `flag:"node" env:"NODE_NAME" help:"name of this node, unique in the domain; default the host's name"`
	TrustDomain string        `flag:"trust-domain" env:"NSM_TRUST_DOMAIN" default:"nsm.local" help:"name of the domain; not used with --join, which tells it"`
	Join        string        `flag:"join" env:"NSM_JOIN" help:"token of 'nsm token create': join that domain instead of having one of one's own"`
	ListenOn    string        `flag:"authority-listen-on" env:"NSM_AUTHORITY_LISTEN_ON" default:"tcp://:5007" help:"where other nodes join"`
	Advertise   []string      `flag:"authority-advertise" env:"NSM_AUTHORITY_ADVERTISE" help:"host:port under which other nodes reach that; default the addresses of this machine"`
	Entries     string        `flag:"identities" env:"NSM_IDENTITIES" help:"YAML file that gives workloads identities of their own"`
	TTL         time.Duration `flag:"svid-ttl" env:"NSM_SVID_TTL" default:"1h" help:"how long an identity is valid; it is renewed after half of that"`
}

// issuer is an authority or the agent of one.
type issuer interface {
	// Source gives a part of this process an identity with the given path.
	Source(ctx context.Context, path string) (identity.Source, error)
	io.Closer
}

type authorityConfig struct {
	daemonConfig
	authoritySettings
	Socket   string `flag:"socket" env:"NSM_IDENTITY_SOCKET" default:"unix:///var/lib/networkservicemesh/identity.sock" help:"URL on which local processes get identities (SPIFFE Workload API)"`
	StateDir string `flag:"state-dir" env:"NSM_STATE_DIR" default:"/var/lib/nsm/authority" help:"directory for keys and join tokens"`
}

func newAuthority(a *app) *cobra.Command {
	var cfg authorityConfig
	return a.daemon(&cobra.Command{
		Use:   "authority",
		Short: "Give the processes of this node their identities",
		Long: "Give the processes of this node their identities, over the SPIFFE Workload API.\n" +
			"The first node of a domain runs the authority itself; with --join a node runs an\n" +
			"agent of it. Where SPIRE is in charge, set SPIFFE_ENDPOINT_SOCKET and do without.",
		Example: "  nsm authority --node a\n  nsm authority --node b --join nsm1…   # with what 'nsm token create' printed on a",
	}, &cfg, func(ctx context.Context, d *daemon) error {
		i, err := openIssuer(ctx, cfg.authoritySettings, cfg.Socket, cfg.StateDir, d.log)
		if err != nil {
			return err
		}
		defer i.Close()
		d.ready("authority", cfg.Socket, cfg.describe())
		<-ctx.Done()
		return nil
	})
}

func (c authoritySettings) describe() string {
	if c.Join != "" {
		return "agent of node " + c.node()
	}
	return "authority of " + c.TrustDomain
}

func (c authoritySettings) node() string {
	if c.Node == "" {
		return hostname()
	}
	return c.Node
}

// openIssuer starts the authority, or with a join token the agent, of this node.
func openIssuer(ctx context.Context, c authoritySettings, socket, stateDir string, log *slog.Logger) (issuer, error) {
	if c.Join != "" {
		return agent.New(ctx, agent.Config{Node: c.node(), StateDir: stateDir, Token: c.Join, Socket: socket, Logger: log})
	}
	return authority.New(ctx, authority.Config{
		TrustDomain: c.TrustDomain, Node: c.node(), StateDir: stateDir, Socket: socket,
		ListenOn: c.ListenOn, Advertise: c.Advertise, Entries: c.Entries, TTL: c.TTL, Logger: log,
	})
}
