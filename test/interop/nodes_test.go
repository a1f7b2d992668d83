// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"encoding/base64"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/payload"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
)

const (
	theirTunnelIP = "192.0.2.2" // higher than ours: each make has its half of the VNIs
	theirMTU      = 1400        // less than what ours has room for
)

// tunnels are the two kinds of wire between nodes, by the service's payload.
var tunnels = []struct{ payload, mechanism string }{
	{payload.Ethernet, "VXLAN"},
	{payload.IP, "WIREGUARD"},
}

// twoNodes runs a test for each security and each kind of tunnel, the latter at
// the same time: they mostly wait for a client to refresh.
func twoNodes(t *testing.T, test func(t *testing.T, as func(string) ref.Security, service *registry.NetworkService, mechanism string)) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		for _, tunnel := range tunnels {
			t.Run(tunnel.mechanism, func(t *testing.T) {
				t.Parallel()
				test(t, as, &registry.NetworkService{Name: "far", Payload: tunnel.payload}, tunnel.mechanism)
			})
		}
	})
}

// segmentsOfTwoNodes are the names on a path between the nodes a and b.
var segmentsOfTwoNodes = []string{"client", "manager-a", "forwarder-a", "manager-b", "forwarder-b", "nse"}

// The reference's node is the far one: ours offers the tunnel, the reference's
// forwarder answers, and our kernel has exactly what was agreed on. A refresh
// changes nothing, neither here nor in what the reference sees.
func TestReferenceNodeBehindOurs(t *testing.T) {
	t.Parallel() // mostly it waits
	twoNodes(t, func(t *testing.T, as func(string) ref.Security, service *registry.NetworkService, mechanism string) {
		reg := refRegistry(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
		near := ourManager(t, as("manager-a"), "manager-a", reg.URL)
		forwarder := ourForwarder(t, as("forwarder-a"), "forwarder-a", near.URL, tunnelIP)
		far := ref.Manager(t, as("manager-b"), ref.ManagerConfig{Name: "manager-b", Registry: reg.URL})
		legs := new(ref.Legs)
		ref.Forwarder(t, as("forwarder-b"), ref.ForwarderConfig{
			Name: "forwarder-b", Manager: far.URL(), TunnelIP: net.ParseIP(theirTunnelIP), Legs: legs,
			Answer: map[string]string{"MTU": strconv.Itoa(theirMTU), "orig_dst_ip": "198.51.100.2"},
		})
		ref.RegisterService(t, as("operator"), reg.URL, service)
		ref.Endpoint(t, as("endpoint"), ref.EndpointConfig{Name: "nse", Service: "far", CIDR: "10.40.0.0/24", Manager: far.URL()})

		user := as("client")
		user.Lifetime = refreshedTokens
		wire, in := connect(t, ourClient(t, user, "client", near.URL), "far", "nsm-c")
		conn := wire.Connection()
		if got := names(conn.GetPath()); !slices.Equal(got, segmentsOfTwoNodes) {
			t.Errorf("path %v, want %v", got, segmentsOfTwoNodes)
		}
		if got := conn.GetContext().GetMTU(); got != theirMTU {
			t.Errorf("MTU %d, want the lower one, %d", got, theirMTU)
		}
		answered, offered := legs.Left()
		if answered.GetType() != mechanism || answered.GetParameters()["orig_dst_ip"] != "198.51.100.2" {
			t.Fatalf("the reference answered with %v", answered)
		}
		forwarder.mustHave(t, conn.GetPath().GetPathSegments()[2].GetId(), plan.Client, in, answered, 0)

		events, _ := watch(t, ours.Dial(t, as("manager-a"), forwarder.URL), "forwarder-a", "")
		events.untilUp()
		again, offeredAgain := legs.Left()
		mustAgree(t, "our offer", offered, offeredAgain)
		mustAgree(t, "the reference's answer", answered, again)
		forwarder.mustHave(t, conn.GetPath().GetPathSegments()[2].GetId(), plan.Client, in, answered, 0)

		if err := wire.Close(soon(t)); err != nil {
			t.Errorf("close: %v", err)
		}
		in.mustBeEmpty(t)
		forwarder.mustForget(t, conn.GetPath().GetPathSegments()[2].GetId())
	})
}

// The reference's node is the near one: its forwarder offers the tunnel, ours
// answers and makes it at our endpoint.
func TestOurNodeBehindReference(t *testing.T) {
	t.Parallel() // mostly it waits
	twoNodes(t, func(t *testing.T, as func(string) ref.Security, service *registry.NetworkService, mechanism string) {
		reg := ours.Registry(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
		near := ref.Manager(t, as("manager-a"), ref.ManagerConfig{Name: "manager-a", Registry: reg.URL})
		legs := new(ref.Legs)
		ref.Forwarder(t, as("forwarder-a"), ref.ForwarderConfig{
			Name: "forwarder-a", Manager: near.URL(), TunnelIP: net.ParseIP(theirTunnelIP), Legs: legs,
			Offer: map[string]string{"MTU": strconv.Itoa(theirMTU), "orig_src_ip": "198.51.100.1"},
		})
		far := ourManager(t, as("manager-b"), "manager-b", reg.URL)
		forwarder := ourForwarder(t, as("forwarder-b"), "forwarder-b", far.URL, tunnelIP)
		server := ourEndpoint(t, as("endpoint"), "nse", service, "10.40.0.0/24", far.URL)

		user := as("client")
		user.Lifetime = refreshedTokens
		client := ref.Client(t, user, ref.ClientConfig{Name: "client", Manager: near.URL(), IfName: "nsm-c"})
		conn := mustRequest(t, client, "id", "far")
		if got := names(conn.GetPath()); !slices.Equal(got, segmentsOfTwoNodes) {
			t.Errorf("path %v, want %v", got, segmentsOfTwoNodes)
		}
		if got := conn.GetContext().GetMTU(); got != theirMTU {
			t.Errorf("MTU %d, want the lower one, %d", got, theirMTU)
		}
		answered, offered := legs.Right()
		if answered.GetType() != mechanism || answered.GetParameters()["orig_src_ip"] != "198.51.100.1" {
			t.Fatalf("ours answered %v with %v", offered, answered)
		}
		forwarder.mustHave(t, conn.GetPath().GetPathSegments()[4].GetId(), plan.Endpoint, server.in, answered, 1)

		events, _ := watch(t, ours.Dial(t, as("manager-b"), forwarder.URL), "forwarder-b", "")
		events.untilUp() // by the client's own refresh
		again, _ := legs.Right()
		mustAgree(t, "our answer", answered, again)

		if _, err := client.Close(soon(t), conn); err != nil {
			t.Errorf("close: %v", err)
		}
		server.in.mustBeEmpty(t)
		forwarder.mustForget(t, conn.GetPath().GetPathSegments()[4].GetId())
	})
}

// mustHave checks that the kernel has the wire in the workload's namespace just as
// the mechanism says. parity is the lowest bit of a VNI that the side behind has to
// choose.
func (f forwarderPart) mustHave(t *testing.T, id string, side plan.Side, in *workload, agreed *networkservice.Mechanism, parity int) {
	t.Helper()
	want, ok, err := f.Desired(t.Context(), id)
	if err != nil || !ok || len(want.Ends) != 1 {
		t.Fatalf("the forwarder wants %+v for connection %s, %v", want, id, err)
	}
	p := agreed.GetParameters()
	own, other := "src", "dst" // who offers is src, whichever way packets go
	if side == plan.Endpoint {
		own, other = other, own
	}
	if p[own+"_ip"] != tunnelIP.String() || p[other+"_ip"] != theirTunnelIP {
		t.Errorf("addresses in %v", p)
	}
	link := in.link(t, want.Ends[0].Name)
	if got := link.Attrs().MTU; got != theirMTU || p["MTU"] != strconv.Itoa(theirMTU) {
		t.Errorf("MTU %d, agreed on %v", got, p)
	}
	for _, a := range want.Ends[0].Addrs {
		if !in.hasAddr(t, link, a.String()) {
			t.Errorf("%s has no address %s", link.Attrs().Name, a)
		}
	}
	switch agreed.GetType() {
	case "VXLAN":
		vxlan, ok := link.(*netlink.Vxlan)
		if !ok {
			t.Fatalf("%s is a %s", link.Attrs().Name, link.Type())
		}
		got := map[string]string{
			"vni": strconv.Itoa(vxlan.VxlanId), own + "_ip": vxlan.SrcAddr.String(), other + "_ip": vxlan.Group.String(),
			own + "_port": strconv.Itoa(vxlan.Port), other + "_port": strconv.Itoa(vxlan.Port),
		}
		for key, value := range got {
			if p[key] != value {
				t.Errorf("the kernel has %s %s, agreed was %q", key, value, p[key])
			}
		}
		if vxlan.VxlanId%2 != parity {
			t.Errorf("VNI %d is of the other direction's half", vxlan.VxlanId)
		}
	case "WIREGUARD":
		got, found, err := f.tunnels.Read(t.Context(), in.Handle, link.Attrs().Name, want.Tag(side).String())
		if err != nil || !found {
			t.Fatalf("the device cannot be read: %v", err)
		}
		public := wgtypes.Key(got.PrivateKey).PublicKey()
		for key, value := range map[string]string{
			own + "_public_key":   public.String(),
			other + "_public_key": base64.StdEncoding.EncodeToString(got.PeerKey[:]),
			own + "_port":         strconv.Itoa(int(got.Port)),
			other + "_ip":         got.Endpoint.Addr().String(),
			other + "_port":       strconv.Itoa(int(got.Endpoint.Port())),
		} {
			if p[key] != value {
				t.Errorf("the device has %s %s, agreed was %q", key, value, p[key])
			}
		}
	}
}

// mustForget checks that the forwarder has nothing of a connection any more.
func (f forwarderPart) mustForget(t *testing.T, id string) {
	t.Helper()
	if w, known, err := f.Desired(t.Context(), id); known || err != nil {
		t.Errorf("the forwarder still wants %+v, %v", w, err)
	}
	status, err := f.tunnels.Holder().Status(t.Context())
	if err == nil && status.Devices != 0 {
		t.Errorf("%d WireGuard devices left", status.Devices)
	}
}

// mustAgree checks that every parameter of a mechanism is in its next version, save for
// the tunnel that ours offers at first, and not again to who has not accepted it.
func mustAgree(t *testing.T, what string, before, after *networkservice.Mechanism) {
	t.Helper()
	for key, value := range before.GetParameters() {
		if strings.HasPrefix(key, "src_tunnel_") {
			continue
		}
		if after.GetParameters()[key] != value {
			t.Errorf("%s had %s=%s, has %q after a refresh", what, key, value, after.GetParameters()[key])
		}
	}
}
