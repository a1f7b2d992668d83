// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/internal/statedir"
	"github.com/openvwire/nsm/registry"
	"github.com/openvwire/nsm/registry/memory"
)

type registryConfig struct {
	daemonConfig
	identityConfig
	Name         string        `flag:"name" env:"NSM_NAME" default:"registry" help:"own name, for the log"`
	Managers     []string      `flag:"managers" env:"NSM_MANAGERS" help:"SPIFFE IDs, besides the parts and root of each node, that may register for others; ID/* means everything below ID"`
	Operators    []string      `flag:"operators" env:"NSM_OPERATORS" help:"SPIFFE IDs, besides root of this node, that may change and delete network services of others, and record profiles; ID/* means everything below ID"`
	ListenOn     []string      `flag:"listen-on" env:"NSM_LISTEN_ON" default:"tcp://:5002" help:"URLs to serve on"`
	StateDir     string        `flag:"state-dir" env:"NSM_STATE_DIR" default:"/var/lib/nsm/registry" help:"directory for what a restart must not lose; empty = nothing is kept"`
	ExpirePeriod time.Duration `flag:"expire-period" env:"NSM_EXPIRE_PERIOD" default:"1m" help:"longest time for which an endpoint stays registered without a renewal"`
}

func newRegistry(a *app) *cobra.Command {
	var cfg registryConfig
	return a.daemon(&cobra.Command{
		Use:   "registry",
		Short: "Serve the registry of a domain",
		Long: "Serve the registry of a domain: which network services there are and which\n" +
			"endpoints offer them. There is one per domain; every manager connects to it.",
		Example: "  nsm registry --listen-on tcp://10.0.0.1:5002 --state-dir /var/lib/nsm/registry",
	}, &cfg, func(ctx context.Context, d *daemon) error {
		source, err := cfg.open(ctx, d.log)
		if err != nil {
			return err
		}
		p := newPart(source, cfg.MaxTokenLifetime, d.log)
		defer p.close()
		r, err := openRegistry(p, cfg.Name, cfg.StateDir, cfg.ExpirePeriod, registryTrust{cfg.Managers, cfg.Operators})
		if err != nil {
			return err
		}
		ls, err := p.listen(ctx, cfg.ListenOn)
		if err != nil {
			return err
		}
		p.serve(ls, r, nil)
		d.ready("registry", urlsOf(ls), p.id())
		<-ctx.Done()
		return nil
	})
}

// registryTrust names who may do more at a registry than register what is theirs.
type registryTrust struct {
	managers  []string // register for others
	operators []string // change the services of others
}

// openRegistry starts a registry that is closed with p, and returns what puts
// its services on a server.
func openRegistry(p *part, name, stateDir string, expiry time.Duration, trust registryTrust) (register func(grpc.ServiceRegistrar), err error) {
	file := func(string) string { return "" }
	if stateDir != "" {
		dir, err := statedir.Open(stateDir)
		if err != nil {
			return nil, err
		}
		p.opened.Call(func() { _ = dir.Close() })
		file = dir.Path
	}
	// Nobody makes a lost service again; endpoints renew themselves every minute.
	services, err := openStore[*api.NetworkService](file("services.log"), true, p)
	if err != nil {
		return nil, err
	}
	endpoints, err := openStore[*api.NetworkServiceEndpoint](file("endpoints.log"), false, p)
	if err != nil {
		return nil, err
	}
	server := registry.New(registry.Config{
		Name: name, Tokens: p.tokens, Policy: registry.Strict{MaySpeakFor: spokesmen(p, trust.managers)}, MayOperate: operators(p, trust.operators), MayProfile: caretakers(p, trust.operators),
		Services: services, Endpoints: endpoints, Logger: p.log, MaxExpiry: expiry,
	})
	p.opened.Call(server.Close)
	return server.Register, nil
}

// openStore opens a store that is closed with p; without a path it keeps nothing.
func openStore[T registry.Object](path string, sync bool, p *part) (store *memory.Store[T], err error) {
	if path == "" {
		store = memory.New[T]()
	} else if store, err = memory.Open[T](memory.Config{Path: path, Sync: sync, Logger: p.log}); err != nil {
		return nil, err
	}
	p.opened.Call(func() { _ = store.Close() })
	return store, nil
}
