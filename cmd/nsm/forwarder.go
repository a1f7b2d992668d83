// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/forwarder"
	"github.com/openvwire/nsm/forwarder/kernel"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/wireguard"
	"github.com/openvwire/nsm/forwarder/wireguard/holder"
	"github.com/openvwire/nsm/internal/statedir"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/registration"
	"github.com/openvwire/nsm/sdk/rpc"
)

// forwarderSettings are those of a forwarder wherever it runs.
type forwarderSettings struct {
	TunnelIP      netip.Addr        `flag:"tunnel-ip" env:"NSM_TUNNEL_IP" help:"this node's address for tunnels; default an address of this machine"`
	VXLANPort     uint16            `flag:"vxlan-port" env:"NSM_VXLAN_PORT" default:"4789" help:"UDP port of VXLAN wires, the same on all nodes"`
	WireGuardPort uint16            `flag:"wireguard-port" env:"NSM_WIREGUARD_PORT" default:"51820" help:"first UDP port of WireGuard; the tunnel has one, and each wire with a device of its own"`
	WireGuard     string            `flag:"wireguard" env:"NSM_WIREGUARD" default:"auto" choices:"auto,userspace" help:"auto takes the kernel's module where it exists"`
	Tunnel        string            `flag:"wireguard-tunnel" env:"NSM_WIREGUARD_TUNNEL" default:"auto" choices:"auto,off,required" help:"auto has all wires between two nodes share one encrypted tunnel, ETHERNET too, where both nodes can and WireGuard is in userspace; off gives each wire a device of its own; required is auto, but refuses wires to other nodes that would not be encrypted (ETHERNET outside of the tunnel), and removes those that stand"`
	Labels        map[string]string `flag:"labels" env:"NSM_LABELS" default:"p2p:true" help:"labels of the registration, by which services choose forwarders"`
	Reconcile     time.Duration     `flag:"reconcile" env:"NSM_RECONCILE" default:"20s" help:"how often each wire is compared with the kernel and repaired; every 15th time leftovers are looked for; 0 = never"`
	NodeUsers     []string          `flag:"node-users" env:"NSM_NODE_USERS" help:"SPIFFE IDs, besides this node's root, that may have wires in the node's own network namespace; ID/* means everything below ID"`
	ServiceName   string            `flag:"nsname" env:"NSM_NSNAME" default:"forwarder" help:"network service to register as"`
}

type forwarderDaemonConfig struct {
	daemonConfig
	identityConfig
	forwarderSettings
	Name      string   `flag:"name" env:"NSM_NAME" help:"own name in paths and in the registry, unique in the domain; default forwarder-HOSTNAME"`
	ConnectTo string   `flag:"connect-to" env:"NSM_CONNECT_TO" default:"unix:///var/lib/networkservicemesh/nsm.io.sock" help:"URL of the node's manager"`
	StateDir  string   `flag:"state-dir" env:"NSM_STATE_DIR" default:"/var/lib/nsm/forwarder" help:"directory for sockets"`
	ListenOn  string   `flag:"listen-on" env:"NSM_LISTEN_ON" help:"URL to serve on; default a socket in --state-dir"`
	Operators []string `flag:"operators" env:"NSM_OPERATORS" help:"SPIFFE IDs, besides root and the parts of each node, that may record profiles; ID/* means everything below ID"`
	Observers []string `flag:"observers" env:"NSM_OBSERVERS" help:"SPIFFE IDs that may see all wires; ID/* means everything below ID"`
	Managers  []string `flag:"managers" env:"NSM_MANAGERS" help:"SPIFFE IDs of managers and forwarders, besides the parts and root of each node, whose wires may share the tunnel; ID/* means everything below ID"`
}

func newForwarder(a *app) *cobra.Command {
	var cfg forwarderDaemonConfig
	return a.daemon(&cobra.Command{
		Use:   "forwarder",
		Short: "Serve a node's forwarder",
		Long: "Serve a node's forwarder: it chooses the endpoint of each wire and makes the\n" +
			"wire in the kernel. It needs CAP_NET_ADMIN and CAP_SYS_ADMIN.",
		Example: "  nsm forwarder --tunnel-ip 10.0.0.1",
	}, &cfg, func(ctx context.Context, d *daemon) error {
		if cfg.Name == "" {
			cfg.Name = "forwarder-" + hostname()
		}
		dir, err := statedir.Open(cfg.StateDir) // one forwarder in it, no more
		if err != nil {
			return err
		}
		defer dir.Close()
		if cfg.ListenOn == "" {
			cfg.ListenOn = "unix://" + filepath.Join(cfg.StateDir, "forwarder.sock")
		}
		source, err := cfg.open(ctx, d.log)
		if err != nil {
			return err
		}
		p := newPart(source, cfg.MaxTokenLifetime, d.log)
		defer p.close()
		manager, err := p.dial(cfg.ConnectTo)
		if err != nil {
			return err
		}
		f, err := openForwarder(ctx, p, cfg.forwarderSettings, cfg.Name, cfg.StateDir, cfg.MaxTokenLifetime, manager, forwarderRights{cfg.Observers, cfg.Operators, cfg.Managers}, cfg.ConnectTo)
		if err != nil {
			return err
		}
		ls, err := p.listen(ctx, []string{cfg.ListenOn})
		if err != nil {
			return err
		}
		p.serve(ls, f.Register, nil)
		if err := registerForwarder(ctx, p, cfg.forwarderSettings, cfg.Name, rpc.URL(ls[0].Addr()), manager); err != nil {
			return err
		}
		d.ready("forwarder", urlsOf(ls), p.id())
		<-ctx.Done()
		return nil
	})
}

// forwarderRights names who may do more at a forwarder than have wires.
type forwarderRights struct {
	observers []string // see all wires
	operators []string // record profiles
	managers  []string // tell of their nodes in the tunnel
}

// openForwarder starts a forwarder that is stopped with p. Wires of an earlier life
// that nobody refreshes within lifetime, that of tokens, are removed. Whoever is at the
// URLs that are needed no wire may come between.
func openForwarder(ctx context.Context, p *part, c forwarderSettings, name, stateDir string, lifetime time.Duration, manager grpc.ClientConnInterface, rights forwarderRights, needed ...string) (*forwarder.Forwarder, error) {
	if !c.TunnelIP.IsValid() {
		ip, err := ownAddress()
		if err != nil {
			return nil, err
		}
		c.TunnelIP, _ = netip.AddrFromSlice(ip)
	}
	namespaces, err := netns.NewTable()
	if err != nil {
		return nil, err
	}
	p.opened.Call(namespaces.Close)
	ready := make(chan *forwarder.Forwarder, 1)
	tunnels, err := wireguard.New(ctx, wireguard.Config{
		Namespaces: namespaces, Socket: filepath.Join(stateDir, "wireguard.sock"),
		Userspace: c.WireGuard == "userspace", Logger: p.log,
		OnRestart: func(ctx context.Context) { // the devices are gone with their holder
			select {
			case f := <-ready:
				ready <- f
				f.Reconcile(ctx)
			case <-ctx.Done():
			}
		},
	})
	if err != nil {
		return nil, err
	}
	p.opened.Call(tunnels.Close)
	k, err := kernel.New(kernel.Config{Name: name, Namespaces: namespaces, WireGuard: tunnels, Logger: p.log})
	if err != nil {
		return nil, err
	}
	if _, err := k.UnderlayPrefix(c.TunnelIP.Unmap()); err != nil { // here, and not with each wire
		return nil, err
	}
	f, err := forwarder.New(forwarder.Config{
		Name: name, TunnelIP: c.TunnelIP.Unmap(), Tokens: p.tokens, Policy: hop.Strict{Observers: rights.observers},
		Peers: p.pool(name, nil), Sockets: p.sockets, Registry: manager,
		Kernel: k, Namespaces: namespaces, MayUseNode: nodeUsers(p, c.NodeUsers), MayTunnel: relays(p, rights.managers), MayProfile: caretakers(p, rights.operators), Needed: needed,
		NoTunnel: c.Tunnel == "off", Encrypted: c.Tunnel == "required", VXLANPort: c.VXLANPort, WireGuardPort: c.WireGuardPort, Logger: p.log,
	})
	if err != nil {
		return nil, err
	}
	p.opened.Call(f.Stop)
	if err := f.Adopt(ctx, lifetime); err != nil {
		return nil, err
	}
	ready <- f
	if c.Reconcile > 0 {
		p.run(func(ctx context.Context) { f.KeepReconciled(ctx, c.Reconcile) })
	}
	return f, nil
}

// registerForwarder makes the forwarder known to its manager and keeps it so
// until p is closed.
func registerForwarder(ctx context.Context, p *part, c forwarderSettings, name, url string, manager grpc.ClientConnInterface) error {
	var socket *os.File
	if path, ok := unixPath(url); ok {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nserr.StateDir.Errorf("open %s: %w", path, err)
		}
		socket = os.NewFile(uintptr(fd), path)
		p.opened.Call(func() { _ = socket.Close() })
		if url, err = rpc.InodeURL(socket); err != nil {
			return err
		}
	}
	r, err := registration.Start(ctx, registration.Config{
		Registry: manager,
		Endpoint: &registry.NetworkServiceEndpoint{
			Name: name, Url: url,
			NetworkServiceNames:  []string{c.ServiceName},
			NetworkServiceLabels: map[string]*registry.NetworkServiceLabels{c.ServiceName: {Labels: c.Labels}},
		},
		Socket: socket,
		Logger: p.log,
	})
	if err != nil {
		return err
	}
	// A forwarder that stops is going to be started again, as far as anybody knows.
	p.opened.Call(r.Abandon)
	return nil
}

func unixPath(url string) (string, bool) {
	const prefix = "unix://"
	if len(url) > len(prefix) && url[:len(prefix)] == prefix {
		return url[len(prefix):], true
	}
	return "", false
}

type holderConfig struct {
	Socket string `flag:"socket" help:"path of the Unix socket to serve on"`
}

// newWireGuardHolder is the process that keeps userspace WireGuard devices. The
// forwarder starts it.
func newWireGuardHolder(a *app) *cobra.Command {
	var cfg holderConfig
	return a.command(&cobra.Command{
		Use:    "wireguard-holder",
		Short:  "Keep userspace WireGuard devices for a forwarder",
		Hidden: true,
		Args:   cobra.NoArgs,
	}, &cfg, func(ctx context.Context, _ []string) error {
		return holder.Main(ctx, holder.Config{Socket: cfg.Socket})
	})
}
