// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/nsmgr"
	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// managerSettings are those of a manager wherever it runs.
type managerSettings struct {
	Excluded  string   `flag:"excluded-prefixes-file" env:"NSM_EXCLUDED_PREFIXES_FILE" default:"/var/lib/networkservicemesh/config/excluded_prefixes.yaml" help:"YAML file of prefixes that endpoints must not use; followed as it changes"`
	Forwarder string   `flag:"forwarder-network-service-name" env:"NSM_FORWARDER_NETWORK_SERVICE_NAME" default:"forwarder" help:"network service that forwarders offer"`
	Trusted   []string `flag:"forwarders" env:"NSM_FORWARDERS" help:"SPIFFE IDs, besides this node's parts and root, that may register as forwarders; ID/* means everything below ID"`
	Managers  []string `flag:"managers" env:"NSM_MANAGERS" help:"SPIFFE IDs, besides the parts and root of each node, that may send Requests of others, and register for others; ID/* means everything below ID"`
	Operators []string `flag:"operators" env:"NSM_OPERATORS" help:"SPIFFE IDs, besides root and the parts of each node, that may drain endpoints of others and record profiles, and those who may change network services of others at a registry in the same process (nsm up); ID/* means everything below ID"`
	Observers []string `flag:"observers" env:"NSM_OBSERVERS" help:"SPIFFE IDs that may see all wires; ID/* means everything below ID"`
}

type managerDaemonConfig struct {
	daemonConfig
	identityConfig
	managerSettings
	Name        string   `flag:"name" env:"NSM_NAME" help:"own name in paths, unique in the domain; default manager-HOSTNAME"`
	ListenOn    []string `flag:"listen-on" env:"NSM_LISTEN_ON" default:"unix:///var/lib/networkservicemesh/nsm.io.sock,tcp://:5001" help:"URLs to serve on"`
	Advertise   string   `flag:"advertise" env:"NSM_ADVERTISE" help:"URL under which other nodes reach this manager; default from --listen-on"`
	RegistryURL string   `flag:"registry-url" env:"NSM_REGISTRY_URL" default:"tcp://localhost:5002" help:"the domain's registry"`
}

func newManager(a *app) *cobra.Command {
	var cfg managerDaemonConfig
	return a.daemon(&cobra.Command{
		Use:   "manager",
		Short: "Serve a node's manager",
		Long: "Serve a node's manager: the first hop of every client on the node, its proxy\n" +
			"to the registry, and the door of the node for other managers. What NODE_NAME,\n" +
			"POD_NAME and CLUSTER_NAME say is added to the labels of clients and endpoints:\n" +
			"nodeName, podName and clusterName, by which services choose.",
		Example: "  nsm manager --registry-url tcp://10.0.0.1:5002 --listen-on unix:///var/lib/networkservicemesh/nsm.io.sock,tcp://10.0.0.1:5001",
	}, &cfg, func(ctx context.Context, d *daemon) error {
		if cfg.Name == "" {
			cfg.Name = "manager-" + hostname()
		}
		source, err := cfg.open(ctx, d.log)
		if err != nil {
			return err
		}
		p := newPart(source, cfg.MaxTokenLifetime, d.log)
		defer p.close()
		ls, err := p.listen(ctx, cfg.ListenOn)
		if err != nil {
			return err
		}
		if cfg.Advertise == "" {
			if cfg.Advertise, err = publicURL(ls); err != nil {
				return err
			}
		}
		registry, err := p.dial(cfg.RegistryURL)
		if err != nil {
			return err
		}
		m, err := openManager(p, cfg.managerSettings, cfg.Name, cfg.Advertise, client.EnvironmentLabels(os.LookupEnv), registry, nil)
		if err != nil {
			return err
		}
		p.serve(ls, m.Register, nil)
		d.ready("manager", urlsOf(ls), p.id())
		<-ctx.Done()
		return nil
	})
}

// openManager starts a manager that is stopped with p. URLs in local lead to
// forwarders of this process.
func openManager(p *part, c managerSettings, name, advertise string, labels map[string]string, registry grpc.ClientConnInterface, local map[string]*rpc.Local) (*nsmgr.Manager, error) {
	excluded, err := openExcluded(p, c.Excluded)
	if err != nil {
		return nil, err
	}
	m, err := nsmgr.New(nsmgr.Config{
		Name: name, URL: advertise, Labels: labels,
		Tokens: p.tokens, Policy: hop.Strict{Observers: c.Observers},
		Peers: p.pool(name, local), Sockets: p.sockets, Registry: registry,
		Excluded: excluded, ForwarderService: c.Forwarder, Logger: p.log,
		MayRelay: relays(p, c.Managers), MayForward: forwarders(p, c.Trusted),
		MayDrain: caretakers(p, c.Operators), MayProfile: caretakers(p, c.Operators),
	})
	if err != nil {
		return nil, err
	}
	p.opened.Call(m.Stop)
	return m, nil
}

// openExcluded follows the file of excluded prefixes if its directory exists.
func openExcluded(p *part, path string) (func() []netip.Prefix, error) {
	if path == "" {
		return nil, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, nserr.StateDir.Errorf("directory of the excluded prefixes: %w", err)
	}
	f, err := nsmgr.OpenExcluded(path, p.log)
	if err != nil {
		return nil, err
	}
	p.opened.Call(func() { _ = f.Close() })
	return f.Prefixes, nil
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "node"
	}
	return name
}
