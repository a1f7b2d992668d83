// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/identity/agent"
	"github.com/openvwire/nsm/sdk/identity/authority"
	"github.com/openvwire/nsm/sdk/nserr"
)

// authoritySettings are those of a node's source of identities wherever it runs.
type authoritySettings struct {
	Node        string        `flag:"node" env:"NODE_NAME" help:"name of this node, unique in the domain; default the host's name"`
	TrustDomain string        `flag:"trust-domain" env:"NSM_TRUST_DOMAIN" default:"nsm.local" help:"name of the domain; not used on a node that joins one"`
	Join        string        `flag:"join" env:"NSM_JOIN" help:"token of 'nsm token create': join that domain instead of having one of one's own; needed once"`
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
	Registry string `flag:"registry-url" env:"NSM_REGISTRY_URL" help:"the domain's registry, as nodes that join are told; default port 5002 of this machine"`
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
			"agent of it, and goes on doing so when it is started again without the token.\n" +
			"Where SPIRE is in charge, set SPIFFE_ENDPOINT_SOCKET and do without.",
		Example: "  nsm authority --node a\n  nsm authority --node b --join nsm1…   # with what 'nsm token create' printed on a",
	}, &cfg, func(ctx context.Context, d *daemon) error {
		joined, err := cfg.joined(cfg.StateDir)
		if err != nil {
			return err
		}
		i, err := openIssuer(ctx, cfg.authoritySettings, joined, cfg.Socket, cfg.StateDir, cfg.Registry, d.log)
		if err != nil {
			return err
		}
		defer i.Close()
		d.ready("authority", cfg.Socket, cfg.describe(joined))
		<-ctx.Done()
		return nil
	})
}

func (c authoritySettings) describe(joined bool) string {
	if joined {
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

// joined reports whether this node belongs to a domain whose authority is on
// another one: it is told to join, or has joined before. It refuses what cannot
// be both, before anything is written.
func (c authoritySettings) joined(stateDir string) (bool, error) {
	keys, membership := filepath.Join(stateDir, authority.CAFile), filepath.Join(stateDir, agent.StateFile)
	isAuthority, err := exists(keys)
	if err != nil {
		return false, err
	}
	isMember, err := exists(membership)
	if err != nil {
		return false, err
	}
	switch {
	case isAuthority && isMember:
		return false, nserr.StateDir.Errorf("this node cannot be the authority of a domain of its own (%s) and a member of another one (%s)", keys, membership).
			WithFix("to stay in the domain that it has joined, move %s away; to be the authority again, move %s away", keys, membership)
	case isAuthority && c.Join != "":
		return false, nserr.StateDir.Errorf("this node is the authority of a domain of its own (%s) and cannot join another one", keys).
			WithFix("start it without --join; or, if nobody needs that domain any more, move %s away", keys)
	}
	return isMember || c.Join != "", nil
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, nserr.StateDir.Errorf("%w", err)
	}
	return true, nil
}

// openIssuer starts the authority of this node, or the agent of one that it has
// joined. Nodes that join are told where the registry is.
func openIssuer(ctx context.Context, c authoritySettings, joined bool, socket, stateDir, registry string, log *slog.Logger) (issuer, error) {
	if joined {
		return agent.New(ctx, agent.Config{Node: c.node(), StateDir: stateDir, Token: c.Join, Socket: socket, Logger: log})
	}
	return authority.New(ctx, authority.Config{
		TrustDomain: c.TrustDomain, Node: c.node(), StateDir: stateDir, Socket: socket, Registry: registry,
		ListenOn: c.ListenOn, Advertise: c.Advertise, Entries: c.Entries, TTL: c.TTL, Logger: log,
	})
}
