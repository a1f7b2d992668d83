// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/identity/agent"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

type upConfig struct {
	daemonConfig
	authoritySettings
	managerSettings
	forwarderSettings
	RunDir           string        `flag:"run-dir" env:"NSM_RUN_DIR" default:"/var/lib/networkservicemesh" help:"directory for the sockets that workloads use"`
	StateDir         string        `flag:"state-dir" env:"NSM_STATE_DIR" default:"/var/lib/nsm" help:"directory for keys and for what the registry must not lose"`
	ManagerListenOn  string        `flag:"manager-listen-on" env:"NSM_MANAGER_LISTEN_ON" default:"tcp://:5001" help:"where managers of other nodes reach this one"`
	Advertise        string        `flag:"advertise" env:"NSM_ADVERTISE" help:"URL under which they do; default an address of this machine"`
	RegistryURL      string        `flag:"registry-url" env:"NSM_REGISTRY_URL" help:"the domain's registry; default one that runs in here, or on a node that has joined what the authority says"`
	RegistryListenOn string        `flag:"registry-listen-on" env:"NSM_REGISTRY_LISTEN_ON" default:"tcp://:5002" help:"where the registry that runs in here serves other nodes"`
	MaxTokenLifetime time.Duration `flag:"max-token-lifetime" env:"NSM_MAX_TOKEN_LIFETIME" default:"10m" help:"how long a token is valid, hence how long a wire lives without a refresh"`
}

func newUp(a *app) *cobra.Command {
	var cfg upConfig
	return a.daemon(&cobra.Command{
		Use:   "up",
		Short: "Run a whole node: authority, registry, manager and forwarder in one process",
		Long: "Run a whole node in one process: the authority and the registry of a new domain,\n" +
			"or with --join the agent of an existing one, and the node's manager and forwarder.\n" +
			"A node that has joined once needs no token to be started again.",
		Example: "  nsm up                                       # the first machine\n" +
			"  nsm token create                             # there, for each further one\n" +
			"  nsm up --join nsm1…                          # on the second",
	}, &cfg, func(ctx context.Context, d *daemon) error { return up(ctx, d, cfg) })
}

// up starts the parts in the order in which they need each other. Parts call
// each other without a socket; everybody else finds them where daemons of their
// own would listen.
func up(ctx context.Context, d *daemon, c upConfig) error {
	nodeSocket := "unix://" + filepath.Join(c.RunDir, "nsm.io.sock")
	if err := makeDirs(c.RunDir, c.StateDir); err != nil {
		return err
	}
	joined, err := c.member()
	if err != nil {
		return err
	}
	// Taken before anything is started: if somebody has them, nothing has happened.
	managerListeners, err := listen(ctx, "--run-dir", nodeSocket)
	if err != nil {
		return err
	}
	defer func() { closeListeners(managerListeners) }() // those that were served are closed by then
	forOthers, err := listen(ctx, "--manager-listen-on", c.ManagerListenOn)
	if err != nil {
		return err
	}
	managerListeners = append(managerListeners, forOthers...)
	var registryListeners []net.Listener
	if !joined && c.RegistryURL == "" {
		if registryListeners, err = listen(ctx, "--registry-listen-on", c.RegistryListenOn); err != nil {
			return err
		}
		defer closeListeners(registryListeners)
	}
	i, err := openIssuerOfNode(ctx, d, c, joined, registryListeners)
	if err != nil {
		return err
	}
	defer i.Close()

	registryPart, err := newOwnPart(ctx, i, "registry", c, d)
	if err != nil {
		return err
	}
	defer registryPart.close()
	managerPart, err := newOwnPart(ctx, i, "manager", c, d)
	if err != nil {
		return err
	}
	defer managerPart.close()
	forwarderPart, err := newOwnPart(ctx, i, "forwarder", c, d)
	if err != nil {
		return err
	}
	defer forwarderPart.close()

	registry, err := c.openRegistry(d, i, registryPart, managerPart, registryListeners)
	if err != nil {
		return err
	}
	if c.Advertise == "" {
		if c.Advertise, err = publicURL(managerListeners); err != nil {
			return err
		}
	}
	forwarderName := "forwarder-" + c.node()
	forwarderURL := "inproc://" + forwarderName
	forwarderLocal := forwarderPart.local()
	c.Observers = observers(managerPart, c.Observers)
	labels := client.EnvironmentLabels(os.LookupEnv)
	labels["nodeName"] = c.node()
	m, err := openManager(managerPart, c.managerSettings, "manager-"+c.node(), c.Advertise, labels, registry, map[string]*rpc.Local{forwarderURL: forwarderLocal})
	if err != nil {
		return err
	}
	managerLocal := managerPart.local()
	m.Register(managerLocal)
	managerPart.serve(managerListeners, m.Register, nil)
	d.ready("manager", urlsOf(managerListeners), managerPart.id())

	manager := forwarderPart.call(managerLocal)
	f, err := openForwarder(ctx, forwarderPart, c.forwarderSettings, forwarderName, c.StateDir, c.MaxTokenLifetime, manager, forwarderRights{c.Observers, c.Operators, c.Managers}, c.RegistryURL)
	if err != nil {
		return err
	}
	f.Register(forwarderLocal)
	if err := registerForwarder(ctx, forwarderPart, c.forwarderSettings, forwarderName, forwarderURL, manager); err != nil {
		return err
	}
	d.ready("forwarder", c.tunnelAddress()+", for tunnels,", forwarderPart.id())
	<-ctx.Done()
	return nil
}

// elsewhere is the Workload API of somebody else that the environment names; ""
// if the identities come from here.
func (c upConfig) elsewhere() string {
	if address := os.Getenv(workloadapi.SocketEnv); address != c.identitySocket() {
		return address
	}
	return ""
}

func (c upConfig) identitySocket() string {
	return "unix://" + filepath.Join(c.RunDir, "identity.sock")
}

func (c upConfig) authorityDir() string { return filepath.Join(c.StateDir, "authority") }

// member reports whether the node has joined a domain or is told to.
func (c upConfig) member() (bool, error) {
	if elsewhere := c.elsewhere(); elsewhere == "" {
		return c.joined(c.authorityDir())
	} else if c.Join != "" {
		return false, nserr.BadFlag.Errorf("identities come from %s, so there is nothing to join", elsewhere).
			WithFix("leave out --join and name the registry with --registry-url; or unset %s", workloadapi.SocketEnv)
	}
	return false, nil
}

// openIssuerOfNode starts the authority or agent of this node, unless the
// environment says that somebody else gives out identities.
func openIssuerOfNode(ctx context.Context, d *daemon, c upConfig, joined bool, registry []net.Listener) (issuer, error) {
	if elsewhere := c.elsewhere(); elsewhere != "" {
		d.ready("authority", "(elsewhere) "+elsewhere, "whatever it says")
		return external{address: elsewhere, log: d.log}, nil
	}
	registryURL := c.RegistryURL
	for _, l := range registry {
		registryURL = rpc.URL(l.Addr())
	}
	i, err := openIssuer(ctx, c.authoritySettings, joined, c.identitySocket(), c.authorityDir(), registryURL, d.log)
	if err == nil {
		d.ready("authority", c.identitySocket(), c.describe(joined))
	}
	return i, err
}

// external is a SPIFFE Workload API of somebody else, SPIRE for example. It
// decides who the parts are.
type external struct {
	address string
	log     *slog.Logger
}

func (e external) Source(ctx context.Context, _ string) (identity.Source, error) {
	return identity.Open(ctx, identity.Config{Address: e.address, Logger: e.log})
}

func (external) Close() error { return nil }

// newOwnPart is a part of this process with an identity of its own.
func newOwnPart(ctx context.Context, i issuer, name string, c upConfig, d *daemon) (*part, error) {
	source, err := i.Source(ctx, "/node/"+c.node()+"/"+name)
	if err != nil {
		return nil, err
	}
	return newPart(source, c.MaxTokenLifetime, d.log), nil
}

// openRegistry returns the manager's connection to the domain's registry, which
// runs in here if there are listeners for it.
func (c *upConfig) openRegistry(d *daemon, i issuer, p, manager *part, ls []net.Listener) (grpc.ClientConnInterface, error) {
	if len(ls) == 0 {
		url := c.RegistryURL
		if a, ok := i.(*agent.Agent); ok && url == "" {
			url = a.Registry() // known, since the parts have got their identities
			c.RegistryURL = url
		}
		d.ready("registry", "(elsewhere) "+url, "client "+manager.id())
		return manager.dial(url)
	}
	register, err := openRegistry(p, "registry", filepath.Join(c.StateDir, "registry"), 0, registryTrust{c.Managers, c.Operators})
	if err != nil {
		return nil, err
	}
	local := p.local()
	register(local)
	p.serve(ls, register, nil)
	d.ready("registry", urlsOf(ls), p.id())
	return manager.call(local), nil
}

func (c *upConfig) tunnelAddress() string {
	if c.TunnelIP.IsValid() {
		return c.TunnelIP.String()
	}
	ip, err := ownAddress()
	if err != nil {
		return "?"
	}
	return ip.String()
}

func makeDirs(run, state string) error {
	for _, d := range []struct {
		flag, path string
		mode       os.FileMode
	}{{"--run-dir", run, 0o755}, {"--state-dir", state, 0o700}} {
		switch err := os.MkdirAll(d.path, d.mode); {
		case errors.Is(err, os.ErrPermission):
			return nserr.NotPrivileged.Errorf("%s: %w", d.flag, err).WithFix("run as root, or name a directory of your own with %s", d.flag)
		case err != nil:
			return nserr.StateDir.Errorf("%s: %w", d.flag, err)
		}
	}
	return nil
}
