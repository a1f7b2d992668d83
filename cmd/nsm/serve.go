// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/sdk/ipam"
	"github.com/openvwire/nsm/sdk/nserr"
)

type serveConfig struct {
	identityConfig
	workloadConn
	workloadConfig
	Name            string            `flag:"name" env:"NSM_NAME" help:"name of the endpoint, unique in the domain; default SERVICE-HOSTNAME, and what tells the workload from others of the host if that is not this process"`
	ServiceNames    []string          `flag:"service-names" env:"NSM_SERVICE_NAMES" help:"network services to offer, besides those on the command line"`
	Payload         string            `flag:"payload" env:"NSM_PAYLOAD" default:"IP" choices:"IP,ETHERNET" help:"what the wires carry: IP packets (encrypted between nodes) or ETHERNET frames (encrypted where WireGuard is in userspace, else VXLAN)"`
	Labels          map[string]string `flag:"label" short:"l" env:"NSM_LABELS" help:"labels of the endpoint, by which services choose it, key=value[,key=value...]"`
	CIDR            ipam.Groups       `flag:"cidr" env:"NSM_CIDR_PREFIX" default:"169.254.0.0/16" help:"pools of addresses; each group separated by a comma gives every wire one pair: 10.60.0.0/24,fd00:60::/64"`
	IPAMPolicy      string            `flag:"ipam-policy" env:"NSM_IPAM_POLICY" default:"strict" choices:"strict,polite" help:"what becomes of addresses that a client brings along: strict takes them from it, polite lets it keep them"`
	MTU             uint32            `flag:"mtu" default:"0" help:"largest MTU of a wire in bytes; 0 = whatever fits"`
	StateDir        string            `flag:"state-dir" env:"NSM_STATE_DIR" help:"directory of the file by which wires keep their addresses over a restart, or 'none'; default $XDG_STATE_HOME/nsm/serve, or /var/lib/nsm/serve for root, or ~/.local/state/nsm/serve"`
	RegisterService bool              `flag:"register-service" env:"NSM_REGISTER_SERVICE" default:"true" help:"register the network services too, unless they exist"`
	Drain           time.Duration     `flag:"drain" env:"NSM_DRAIN" default:"10s" help:"with -- COMMAND: how long clients may take to move to other endpoints of their services before it is told to end; 0 = none at all"`
}

func newServe(a *app) *cobra.Command {
	var cfg serveConfig
	c := &cobra.Command{
		Use:   "serve [flags] SERVICE... [-- COMMAND [ARG...]]",
		Short: "Serve network services from a workload",
		Long: "Serve network services: register an endpoint and give each client that connects\n" +
			"an interface in the workload's network namespace and a pair of addresses. The\n" +
			"workload is this process's namespace, that of --pid or --netns, or with\n" +
			"-- COMMAND a new one in which the command runs.\n\n" +
			"When nsm is told to end, clients move to other endpoints of their services, if there\n" +
			"are any, before the command is told; see --drain. Without a command the workload\n" +
			"goes on, and wires with it: what is started again under the same name has them. If\n" +
			"it is not to be, 'nsm drain endpoint' moves them before.",
		Example: "  nsm serve database --cidr 10.60.0.0/24,fd00:60::/64 --label role=primary --pid \"$(pidof -s postgres)\"\n" +
			"  nsm serve web --cidr 10.61.0.0/24 -- python3 -m http.server 80",
		GroupID: groupWorkload,
		Args:    cobra.ArbitraryArgs, // names may come from the environment
	}
	return a.command(c, &cfg, func(ctx context.Context, args []string) error {
		names, command := splitCommand(c, args)
		return a.serve(ctx, cfg, append(names, cfg.ServiceNames...), command)
	})
}

func (a *app) serve(ctx context.Context, cfg serveConfig, names, command []string) error {
	if len(names) == 0 {
		return nserr.BadFlag.Errorf("no network service is named").WithFix("nsm serve SERVICE")
	}
	pool, err := ipam.New(cfg.CIDR)
	if err != nil {
		return err
	}
	isV6 := func(p netip.Prefix) bool { return p.Addr().Is6() }
	v6 := slices.ContainsFunc(cfg.CIDR, func(group []netip.Prefix) bool { return slices.ContainsFunc(group, isV6) })
	if err := plan.CheckMTU(int(cfg.MTU), v6); err != nil { // or each client would fail, and hear of it alone
		return fmt.Errorf("--mtu: %w", err)
	}
	if err := probe(ctx, cfg.ConnectTo); err != nil {
		return err
	}
	w, err := openWorkload(cfg.workloadConfig, command)
	if err != nil {
		return err
	}
	defer w.close()
	if cfg.Name == "" {
		named := w.netns
		if cfg.PID == 0 && cfg.NetNS == "" {
			named = nil
		}
		if cfg.Name, err = defaultName(names[0], hostname(), named, command); err != nil {
			return err
		}
	}
	source, err := cfg.openReachable(ctx, cfg.identityConfig)
	if err != nil {
		return err
	}
	defer source.Close()

	handlers := []endpoint.Middleware{endpoint.Interface(w.netns)}
	leases, err := openLeases(cfg.StateDir, cfg.Name, pool)
	if err != nil {
		return err
	}
	if leases != nil {
		defer leases.Close()
		handlers = append(handlers, leases.Remember)
	}
	handlers = append(handlers, endpoint.Addresses(pool, endpoint.AddressPolicy(cfg.IPAMPolicy)))
	if cfg.MTU != 0 {
		handlers = append(handlers, endpoint.MTU(cfg.MTU))
	}
	services := make([]endpoint.Service, len(names))
	for i, name := range names {
		services[i] = endpoint.Service{Name: name, Payload: cfg.Payload, Labels: cfg.Labels}
	}
	e, err := endpoint.Serve(ctx, endpoint.Config{
		Name: cfg.Name, Services: services, Handler: endpoint.Chain(handlers...),
		Manager: cfg.ConnectTo, Source: source, TokenLifetime: cfg.MaxTokenLifetime, KeepServices: !cfg.RegisterService,
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.err, "nsm: endpoint %s serves %s\n", cfg.Name, strings.Join(names, ", "))
	if len(command) > 0 {
		err = a.runDrained(ctx, e, w, command, cfg.Drain)
	} else {
		err = w.wait(ctx)
	}
	left := cfg.Name + " stays registered until that expires, within a minute"
	return errors.Join(err, a.cleansUp("unregistering the endpoint", left, func() error { return e.Stop(context.WithoutCancel(ctx)) }))
}

// runDrained runs the command of an endpoint until it ends, or until it is told to: when
// ctx has ended and clients have had the time to move to other endpoints. They get that
// also when the command has ended.
func (a *app) runDrained(ctx context.Context, e *endpoint.Endpoint, w *workload, command []string, limit time.Duration) error {
	drained := sync.OnceFunc(func() {
		if limit <= 0 {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		_ = a.cleansUp("moving wires to other endpoints", "wires to this endpoint are cut", func() error {
			left, err := e.MoveAway(ctx)
			if err != nil {
				fmt.Fprintf(a.err, "nsm: %s not moved to other endpoints: %v\n", wires(uint32(left)), err)
			}
			return nil
		})
	})
	run, tell := context.WithCancel(context.WithoutCancel(ctx))
	defer tell()
	stop := context.AfterFunc(ctx, func() {
		drained()
		tell()
	})
	err := w.run(run, a, command)
	stop()
	drained() // waits for it if it is under way
	return err
}

// defaultName is what an endpoint is called that nobody has named: the same again when
// it is restarted, and something else for another workload of the same host. netns is
// the namespace that was named for the workload, nil if none was. A command without one
// has a new one each time; it is told by its command line.
func defaultName(service, host string, netns *os.File, command []string) (string, error) {
	name := service + "-" + host
	if netns != nil {
		info, err := netns.Stat()
		if err != nil {
			return "", nserr.NoNetNS.Errorf("%w", err)
		}
		name += fmt.Sprintf("-%d", info.Sys().(*syscall.Stat_t).Ino)
	}
	if len(command) > 0 {
		sum := sha256.Sum256([]byte(strings.Join(command, "\x00")))
		name += "-" + hex.EncodeToString(sum[:4])
	}
	return name, nil
}
