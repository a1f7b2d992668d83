// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice/payload"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/registration"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
)

// Our endpoints and forwarders register at the reference's manager: service and
// endpoint appear in its registry, the socket goes along as a descriptor that
// others find and can connect to, and Stop takes it all back.
func TestOurRegistrationAtReferenceManager(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		reg := ref.Registry(t, as("registry"), ref.Loopback)
		manager := ref.Manager(t, as("manager"), ref.ManagerConfig{Name: "manager", Registry: reg.URL()})
		direct := ref.NewRegistryClient(t.Context(), t, as("observer"), reg.URL())
		local := ref.NewRegistryClient(t.Context(), t, as("forwarder"), manager.URL())

		socket, called := listeningSocket(t)
		inode, err := rpc.InodeURL(socket)
		if err != nil {
			t.Fatal(err)
		}
		r, err := registration.Start(soon(t), registration.Config{
			Registry: ours.Dial(t, as("endpoint"), manager.URL()),
			Endpoint: endpoint("nse", "echo", inode, nil),
			Services: []*api.NetworkService{{Name: "echo", Payload: payload.IP}},
			Socket:   socket,
			Logger:   ours.Quiet,
		})
		if err != nil {
			t.Fatal(err)
		}
		if stored := findEndpoints(t, direct, &api.NetworkServiceEndpoint{Name: "nse"}); len(stored) != 1 || stored[0].GetUrl() != manager.URLs[1] {
			t.Errorf("the registry holds %v, want the URL %s", stored, manager.URLs[1])
		}
		found := findEndpoints(t, local, &api.NetworkServiceEndpoint{NetworkServiceNames: []string{"echo"}})
		if len(found) != 1 {
			t.Fatalf("the manager knows %v", found)
		}
		c, err := net.Dial("unix", strings.TrimPrefix(found[0].GetUrl(), "unix://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := <-called; err != nil {
			t.Errorf("nobody arrived at the endpoint's socket: %v", err)
		}

		if err := r.Stop(soon(t)); err != nil {
			t.Errorf("stop: %v", err)
		}
		if left := findEndpoints(t, direct, &api.NetworkServiceEndpoint{Name: "nse"}); len(left) != 0 {
			t.Errorf("still registered: %v", left)
		}
	})
}

// The reference's registry dies and comes back empty: our registration notices
// by the watch of its own name and is back at once.
func TestOurRegistrationHealsOnReferenceRegistry(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		registrySecurity, address := as("registry"), ref.Socket(t)
		reg := ref.Registry(t, registrySecurity, address)
		r, err := registration.Start(soon(t), registration.Config{
			Registry: ours.Dial(t, as("endpoint"), reg.URL()),
			Endpoint: endpoint("nse", "echo", "tcp://10.0.0.1:5001", nil),
			Logger:   ours.Quiet,
		})
		if err != nil {
			t.Fatal(err)
		}
		reg.Stop()
		ref.Registry(t, registrySecurity, address)
		events := watchEndpoints(t, ourRegistryClient(t, as("observer"), address), &api.NetworkServiceEndpoint{Name: "nse"})
		events.want("nse", false)
		if err := r.Stop(soon(t)); err != nil {
			t.Errorf("stop: %v", err)
		}
		events.want("nse", true)
	})
}

// listeningSocket is a Unix socket, opened as an endpoint opens its own, and the
// outcome of the first connection to it.
func listeningSocket(t *testing.T) (*os.File, <-chan error) {
	t.Helper()
	path := strings.TrimPrefix(ref.Socket(t), "unix://")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	called := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = c.Close()
		}
		called <- err
	}()
	f, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f, called
}
