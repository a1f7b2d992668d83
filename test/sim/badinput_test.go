// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/internal/nstest"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// bench is the mesh of one row: two nodes, an endpoint on each, and a client that
// sends what the row makes of a good Request.
type bench struct {
	*Mesh
	a, b *Node
	web  *Raw
	req  *networkservice.NetworkServiceRequest

	later []func() // after the row
}

// send sends the request as it is now to the manager of node a.
func (b *bench) send() error {
	_, err := b.web.Request(b.a.ManagerURL(), b.req)
	return err
}

// conn is the connection that is asked for.
func (b *bench) conn() *networkservice.Connection { return b.req.Connection }

// own is the client's segment.
func (b *bench) own() *networkservice.PathSegment { return b.conn().Path.PathSegments[0] }

// wish is the client's one mechanism preference.
func (b *bench) wish() *networkservice.Mechanism { return b.req.MechanismPreferences[0] }

// ip makes sure that the request has an IP context.
func (b *bench) ip() *networkservice.IPContext {
	b.conn().Context = &networkservice.ConnectionContext{IpContext: &networkservice.IPContext{}}
	return b.conn().Context.IpContext
}

// as sends the request with a token of the client that says something else.
func (b *bench) as(token string, expires time.Time) error {
	return b.web.requestWithToken(b.a.ManagerURL(), b.req, token, expires)
}

// lied is what becomes of a request when the endpoint it gets lies.
func lied(lie func(c *networkservice.Connection)) func(*testing.T, *bench) error {
	return func(t *testing.T, b *bench) error {
		b.a.Serve(Service{Name: "lies", CIDR: "10.66.0.0/24", Lie: func(c *networkservice.Connection) *networkservice.Connection { lie(c); return c }})
		b.conn().NetworkService = "lies"
		return b.send()
	}
}

// row is one kind of bad input.
type row struct {
	name string
	want *nserr.Reason
	do   func(t *testing.T, b *bench) error
}

// badInput are the rows of the list that a mesh in a bubble can have.
// Those that take a real socket or disk are in badinput_real_test.go.
var badInput = []row{
	// The path.
	{"no path", nserr.BadPath, func(t *testing.T, b *bench) error { b.conn().Path = nil; return b.send() }},
	{"path index outside", nserr.BadPath, func(t *testing.T, b *bench) error { b.conn().Path.Index = 7; return b.send() }},
	{"path segment without a name", nserr.BadPath, func(t *testing.T, b *bench) error { b.own().Name = ""; return b.send() }},
	{"path segment without an id", nserr.BadPath, func(t *testing.T, b *bench) error { b.own().Id = ""; return b.send() }},
	{"path segment id of giant length", nserr.BadPath, func(t *testing.T, b *bench) error {
		b.own().Id = strings.Repeat("x", 1000)
		return b.send()
	}},
	{"path that loops", nserr.LoopingPath, func(t *testing.T, b *bench) error {
		b.conn().Path.PathSegments = append(b.conn().Path.PathSegments, &networkservice.PathSegment{Name: "x", Id: "x"}, b.own())
		b.conn().Path.Index = 2
		return b.send()
	}},
	{"path that is too long", nserr.LoopingPath, func(t *testing.T, b *bench) error {
		for i := range 100 {
			b.conn().Path.PathSegments = append(b.conn().Path.PathSegments, &networkservice.PathSegment{Name: "x", Id: fmt.Sprint(i)})
		}
		return b.send()
	}},
	{"id that is not the segment's", nserr.SegmentID, func(t *testing.T, b *bench) error { b.conn().Id = "other"; return b.send() }},
	{"no connection", nserr.BadRequest, func(t *testing.T, b *bench) error { b.req.Connection = nil; return b.send() }},

	// The token.
	{"no token", nserr.NoToken, func(t *testing.T, b *bench) error { return b.as("", time.Time{}) }},
	{"token that is none", nserr.BadToken, func(t *testing.T, b *bench) error { return b.as("nonsense", time.Now().Add(time.Hour)) }},
	{"token that has expired", nserr.TokenExpired, func(t *testing.T, b *bench) error {
		end := time.Now().Add(-time.Second)
		return b.as(b.web.Forge(ID("web"), ID("manager-a"), end), end)
	}},
	{"token of somebody else", nserr.ForeignToken, func(t *testing.T, b *bench) error {
		end := time.Now().Add(time.Hour)
		return b.as(b.Stranger("mallory").Forge(ID("web"), ID("manager-a"), end), end)
	}},
	{"token that names somebody else", nserr.ForeignToken, func(t *testing.T, b *bench) error {
		end := time.Now().Add(time.Hour)
		return b.as(b.web.Forge(ID("db"), ID("manager-a"), end), end)
	}},
	{"token for somebody else", nserr.BrokenChain, func(t *testing.T, b *bench) error {
		end := time.Now().Add(time.Hour)
		return b.as(b.web.Forge(ID("web"), ID("manager-b"), end), end)
	}},
	{"expiry that has passed", nserr.TokenExpired, func(t *testing.T, b *bench) error {
		return b.as(b.web.Forge(ID("web"), ID("manager-a"), time.Now().Add(time.Hour)), time.Now().Add(-time.Minute))
	}},
	{"wrong owner of a Request", nserr.WrongOwner, func(t *testing.T, b *bench) error {
		theirs := b.wireOf(t, "victim")
		_, err := b.web.Request(b.a.ManagerURL(), Again(b.req, theirs))
		return err
	}},
	{"wrong owner of a Close", nserr.WrongOwner, func(t *testing.T, b *bench) error {
		return b.web.Close(b.a.ManagerURL(), b.wireOf(t, "victim"))
	}},

	// What is asked for.
	{"no service", nserr.BadRequest, func(t *testing.T, b *bench) error { b.conn().NetworkService = ""; return b.send() }},
	{"service name of giant length", nserr.BadRequest, func(t *testing.T, b *bench) error {
		b.conn().NetworkService = strings.Repeat("x", 1000)
		return b.send()
	}},
	{"unknown service", nserr.UnknownService, func(t *testing.T, b *bench) error { b.conn().NetworkService = "nope"; return b.send() }},
	{"service with another payload", nserr.UnknownService, func(t *testing.T, b *bench) error { b.conn().Payload = "ETHERNET"; return b.send() }},
	{"payload that does not exist", nserr.BadRequest, func(t *testing.T, b *bench) error { b.conn().Payload = "BANANA"; return b.send() }},
	{"no endpoint is registered", nserr.NoEndpoint, func(t *testing.T, b *bench) error {
		b.Apply(b.a, &api.NetworkService{Name: "lonely"})
		b.conn().NetworkService = "lonely"
		return b.send()
	}},
	{"no endpoint matches", nserr.NoMatch, func(t *testing.T, b *bench) error {
		b.Apply(b.a, &api.NetworkService{Name: "picky", Matches: []*api.Match{{Routes: []*api.Destination{{DestinationSelector: map[string]string{"a": "b"}}}}}})
		b.a.Serve(Service{Name: "picky", CIDR: "10.66.0.0/24"})
		b.conn().NetworkService = "picky"
		return b.send()
	}},
	{"all endpoints have failed", nserr.EndpointsFailed, func(t *testing.T, b *bench) error {
		for _, n := range []*Node{b.a, b.b} {
			n.Serve(Service{Name: "dead", CIDR: "10.66.0.0/24"}).Vanish()
		}
		b.conn().NetworkService = "dead"
		return b.send()
	}},
	{"unknown endpoint", nserr.UnknownEndpoint, func(t *testing.T, b *bench) error {
		b.conn().NetworkServiceEndpointName = "nobody"
		return b.send()
	}},
	{"endpoint of another service", nserr.UnknownEndpoint, func(t *testing.T, b *bench) error {
		b.a.Serve(Service{Name: "other", CIDR: "10.66.0.0/24"})
		b.conn().NetworkServiceEndpointName = "other-a"
		return b.send()
	}},
	{"no forwarder", nserr.NoForwarder, func(t *testing.T, b *bench) error {
		b.a.Forwarder().Stop()
		Pass(time.Minute)
		return b.send()
	}},
	{"too many DNS configs", nserr.BadContext, func(t *testing.T, b *bench) error {
		b.conn().Context = &networkservice.ConnectionContext{DnsContext: &networkservice.DNSContext{Configs: make([]*networkservice.DNSConfig, 65)}}
		return b.send()
	}},
	{"too many metrics", nserr.BadPath, func(t *testing.T, b *bench) error {
		metrics := make(map[string]string)
		for i := range 65 {
			metrics[fmt.Sprint(i)] = ""
		}
		b.conn().Path.PathSegments[0].Metrics = metrics
		return b.send()
	}},
	{"too many labels", nserr.BadRequest, func(t *testing.T, b *bench) error {
		b.conn().Labels = make(map[string]string)
		for i := range 1000 {
			b.conn().Labels[fmt.Sprint(i)] = "x"
		}
		return b.send()
	}},

	// The mechanism.
	{"unsupported mechanism", nserr.Unsupported, func(t *testing.T, b *bench) error { b.wish().Type = "MEMIF"; return b.send() }},
	{"no mechanism", nserr.Unsupported, func(t *testing.T, b *bench) error { b.req.MechanismPreferences = nil; return b.send() }},
	{"interface name that is too long", nserr.BadName, func(t *testing.T, b *bench) error {
		b.wish().Parameters["name"] = "sixteen-letters-"
		return b.send()
	}},
	{"interface name with a slash", nserr.BadName, func(t *testing.T, b *bench) error { b.wish().Parameters["name"] = "a/b"; return b.send() }},
	{"interface name that is taken", nserr.NameTaken, func(t *testing.T, b *bench) error {
		b.a.Kernel.AddLink(b.SpaceKey("web"), "nsm-1")
		defer b.a.Kernel.RemoveLink(b.SpaceKey("web"), "nsm-1")
		return b.send()
	}},
	{"interface name of another wire", nserr.NameTaken, func(t *testing.T, b *bench) error {
		got, err := b.web.Request(b.a.ManagerURL(), b.req)
		if err != nil {
			t.Fatal(err)
		}
		defer b.web.Close(b.a.ManagerURL(), got)
		b.req = b.web.Message("db")
		b.conn().Id, b.own().Id = "second", "second"
		return b.send()
	}},
	{"namespace that is gone", nserr.NoNetNS, func(t *testing.T, b *bench) error {
		b.a.Kernel.DeleteNamespace(b.SpaceKey("web"))
		return b.send()
	}},
	{"namespace that is none", nserr.NoNetNS, func(t *testing.T, b *bench) error {
		f := b.file()
		b.wish().Parameters["inodeURL"], _ = rpc.InodeURL(f)
		_, err := b.web.RequestWith(b.a.ManagerURL(), b.req, f)
		return err
	}},
	{"namespace of another kind", nserr.NoNetNS, func(t *testing.T, b *bench) error {
		f, err := os.Open("/proc/self/ns/uts")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b.wish().Parameters["inodeURL"], _ = rpc.InodeURL(f)
		_, err = b.web.RequestWith(b.a.ManagerURL(), b.req, f)
		return err
	}},
	{"no descriptor", nserr.NoDescriptor, func(t *testing.T, b *bench) error {
		_, err := b.web.RequestWith(b.a.ManagerURL(), b.req)
		return err
	}},
	{"no namespace is named", nserr.NoDescriptor, func(t *testing.T, b *bench) error {
		delete(b.wish().Parameters, "inodeURL")
		return b.send()
	}},
	{"namespace by a path of another process", nserr.NoDescriptor, func(t *testing.T, b *bench) error {
		b.wish().Parameters["inodeURL"] = "file:///proc/1/ns/net"
		return b.send()
	}},

	// Addresses.
	{"address pool that is exhausted", nserr.AddressesExhausted, func(t *testing.T, b *bench) error {
		b.a.Serve(Service{Name: "tiny", CIDR: "10.66.0.0/31"})
		first := b.Raw("first")
		req := first.Message("tiny")
		got, err := first.Request(b.a.ManagerURL(), req)
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close(b.a.ManagerURL(), got)
		b.conn().NetworkService = "tiny"
		return b.send()
	}},
	{"address pool that the client excludes", nserr.AddressesExcluded, func(t *testing.T, b *bench) error {
		b.ip().ExcludedPrefixes = []string{"10.0.0.0/8"}
		return b.send()
	}},
	{"address pool that the node excludes", nserr.AddressesExcluded, func(t *testing.T, b *bench) error {
		b.a.Excluded = func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }
		return b.send()
	}},
	{"address that is none", nserr.BadContext, func(t *testing.T, b *bench) error {
		b.ip().SrcIpAddrs = []string{"10.0.0"}
		return b.send()
	}},
	{"route that is none", nserr.BadContext, func(t *testing.T, b *bench) error {
		b.ip().SrcRoutes = []*networkservice.Route{{Prefix: "10.0.0.0/99"}}
		return b.send()
	}},
	{"policy with a port that is none", nserr.BadContext, func(t *testing.T, b *bench) error {
		b.ip().Policies = []*networkservice.PolicyRoute{{DstPort: "http"}}
		return b.send()
	}},
	{"neighbor that is none", nserr.BadContext, func(t *testing.T, b *bench) error {
		b.ip().IpNeighbors = []*networkservice.IpNeighbor{{Ip: "10.0.0.1", HardwareAddress: "x"}}
		return b.send()
	}},
	{"MTU below the minimum", nserr.MTUTooSmall, func(t *testing.T, b *bench) error {
		b.conn().Context = &networkservice.ConnectionContext{MTU: 100}
		return b.send()
	}},
	{"MTU below that of IPv6", nserr.MTUTooSmall, func(t *testing.T, b *bench) error {
		b.a.Serve(Service{Name: "six", CIDR: "fd00:66::/64"})
		b.conn().NetworkService, b.conn().Context = "six", &networkservice.ConnectionContext{MTU: 600}
		return b.send()
	}},

	// The service URL, which the client reads itself.
	{"service URL without a service", nserr.BadServiceURL, func(t *testing.T, b *bench) error {
		_, err := b.a.Client("url").Client.Connect(t.Context(), "kernel://")
		return err
	}},
	{"service URL that is none", nserr.BadServiceURL, func(t *testing.T, b *bench) error {
		_, err := b.a.Client("url").Client.Connect(t.Context(), "%zz")
		return err
	}},
	{"service URL with a bad interface", nserr.BadName, func(t *testing.T, b *bench) error {
		_, err := b.a.Client("url").Client.Connect(t.Context(), "kernel://db/sixteen-letters-")
		return err
	}},
	{"service URL with another mechanism", nserr.Unsupported, func(t *testing.T, b *bench) error {
		_, err := b.a.Client("url").Client.Connect(t.Context(), "memif://db")
		return err
	}},

	// An endpoint that answers nonsense.
	{"answer for another connection", nserr.BadAnswer, lied(func(c *networkservice.Connection) { c.Id = "other" })},
	{"answer with another index", nserr.BadAnswer, lied(func(c *networkservice.Connection) { c.Path.Index = 0 })},
	{"answer without a path", nserr.BadAnswer, lied(func(c *networkservice.Connection) { c.Path = nil })},
	{"answer with another beginning of the path", nserr.BadAnswer, lied(func(c *networkservice.Connection) { c.Path.PathSegments[1].Id = "other" })},
	{"answer without the endpoint in the path", nserr.BadAnswer, lied(func(c *networkservice.Connection) { c.Path.PathSegments = c.Path.PathSegments[:3] })},
	{"answer with a giant path", nserr.BadAnswer, lied(func(c *networkservice.Connection) {
		for i := range 100 {
			c.Path.PathSegments = append(c.Path.PathSegments, &networkservice.PathSegment{Name: "x", Id: fmt.Sprint(i)})
		}
	})},
	{"answer without an expiry", nserr.BadAnswer, lied(func(c *networkservice.Connection) { c.Path.PathSegments[3].Expires = nil })},
	{"answer with an expiry that is no time", nserr.BadAnswer, lied(func(c *networkservice.Connection) {
		c.Path.PathSegments[3].Expires = &timestamppb.Timestamp{Seconds: 1 << 60}
	})},
	{"answer for another service", nserr.BadAnswer, lied(func(c *networkservice.Connection) { c.NetworkService = "other" })},
	{"answer with an address that is none", nserr.BadAnswer, lied(func(c *networkservice.Connection) { c.Context.IpContext.SrcIpAddrs = []string{"x"} })},
	{"answer with a multicast address", nserr.BadAnswer, lied(func(c *networkservice.Connection) { c.Context.IpContext.DstIpAddrs = []string{"224.0.0.1/32"} })},
	{"answer with a route in another family", nserr.BadAnswer, lied(func(c *networkservice.Connection) {
		c.Context.IpContext.SrcRoutes = []*networkservice.Route{{Prefix: "10.0.0.0/8", NextHop: "fd00::1"}}
	})},
	{"answer with a policy that is none", nserr.BadAnswer, lied(func(c *networkservice.Connection) {
		c.Context.IpContext.Policies = []*networkservice.PolicyRoute{{Proto: "banana"}}
	})},
	{"answer with an MTU of 1", nserr.BadAnswer, lied(func(c *networkservice.Connection) { c.Context.MTU = 1 })},
	{"answer with too many routes", nserr.BadAnswer, lied(func(c *networkservice.Connection) {
		for range 5000 {
			c.Context.IpContext.SrcRoutes = append(c.Context.IpContext.SrcRoutes, &networkservice.Route{Prefix: "10.0.0.0/8"})
		}
	})},
	{"answer without a mechanism", nserr.BadAnswer, lied(func(c *networkservice.Connection) { c.Mechanism = nil })},
	{"answer with another mechanism", nserr.BadAnswer, lied(func(c *networkservice.Connection) { c.Mechanism.Type = "VXLAN" })},
	{"answer without a namespace", nserr.BadAnswer, lied(func(c *networkservice.Connection) { delete(c.Mechanism.Parameters, "inodeURL") })},
	{"answer with a namespace that was not sent", nserr.BadAnswer, lied(func(c *networkservice.Connection) { c.Mechanism.Parameters["inodeURL"] = "inode://4/1" })},
	{"answer with an interface name that is too long", nserr.BadAnswer, lied(func(c *networkservice.Connection) { c.Mechanism.Parameters["name"] = "sixteen-letters-" })},
	{"answer with the client's namespace and interface", nserr.NameTaken, func(t *testing.T, b *bench) error {
		b.a.Serve(Service{Name: "lies", Endpoint: "web", CIDR: "10.66.0.0/24", Lie: func(c *networkservice.Connection) *networkservice.Connection {
			c.Mechanism.Parameters["name"] = "nsm-1"
			return c
		}}) // its namespace is Space("web"), the client's
		b.conn().NetworkService = "lies"
		return b.send()
	}},
	{"no answer", nserr.BadAnswer, func(t *testing.T, b *bench) error {
		b.a.Serve(Service{Name: "lies", CIDR: "10.66.0.0/24", Lie: func(*networkservice.Connection) *networkservice.Connection {
			return &networkservice.Connection{}
		}})
		b.conn().NetworkService = "lies"
		return b.send()
	}},
	{"endpoint that panics", nserr.EndpointsFailed, func(t *testing.T, b *bench) error {
		b.a.Serve(Service{Name: "lies", CIDR: "10.66.0.0/24", Lie: func(*networkservice.Connection) *networkservice.Connection { panic("endpoint") }})
		b.conn().NetworkService = "lies"
		return b.send()
	}},

	// The registry.
	{"endpoint without a name", nserr.BadEndpoint, registering(func(e *api.NetworkServiceEndpoint) { e.Name = "" })},
	{"endpoint without a service", nserr.BadEndpoint, registering(func(e *api.NetworkServiceEndpoint) { e.NetworkServiceNames = nil })},
	{"endpoint without a URL", nserr.BadEndpoint, registering(func(e *api.NetworkServiceEndpoint) { e.Url = "" })},
	{"endpoint with a URL of another kind", nserr.BadEndpoint, registering(func(e *api.NetworkServiceEndpoint) { e.Url = "http://x" })},
	{"endpoint whose socket does not come", nserr.NoDescriptor, registering(func(e *api.NetworkServiceEndpoint) { e.Url = "inode://1/2" })},
	{"endpoint with a name of giant length", nserr.BadEndpoint, registering(func(e *api.NetworkServiceEndpoint) { e.Name = strings.Repeat("x", 1000) })},
	{"endpoint of somebody else", nserr.NameOwned, registering(func(e *api.NetworkServiceEndpoint) { e.Name = "db-a" })},
	{"endpoint of somebody on another node", nserr.NameOwned, registering(func(e *api.NetworkServiceEndpoint) { e.Name = "db-b" })},
}

// registering is the registration of a good endpoint, changed.
func registering(change func(*api.NetworkServiceEndpoint)) func(*testing.T, *bench) error {
	return func(t *testing.T, b *bench) error {
		nse := &api.NetworkServiceEndpoint{Name: "new", NetworkServiceNames: []string{"db"}, Url: "tcp://192.0.2.9:1"}
		change(nse)
		_, err := api.NewNetworkServiceEndpointRegistryClient(b.web.dial(b.a.ManagerURL())).Register(t.Context(), nse)
		return err
	}
}

// wireOf makes a wire of somebody else that is closed after the row.
func (b *bench) wireOf(t *testing.T, name string) *networkservice.Connection {
	t.Helper()
	r := b.Raw(name)
	got, err := r.Request(b.a.ManagerURL(), r.Message("db"))
	if err != nil {
		t.Fatal(err)
	}
	b.later = append(b.later, func() {
		if err := r.Close(b.a.ManagerURL(), got); err != nil {
			t.Errorf("the owner cannot close: %v", err)
		}
	})
	return got
}

// Each kind of bad input gets an error with a code, a reason and what to do about
// it, and leaves nothing behind. A good Request afterwards succeeds.
func TestBadInput(t *testing.T) {
	for _, row := range badInput {
		t.Run(row.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				b := &bench{Mesh: m, a: m.Node("a"), b: m.Node("b")}
				b.a.Serve(Service{Name: "db"})
				b.b.Serve(Service{Name: "db", CIDR: "10.61.0.0/24"})
				b.web = m.Raw("web")
				b.req = b.web.Message("db")
				registered, open, closeNew := m.Registered(), fewestDescriptors(), m.mark()

				err := row.do(t, b)
				checkRefused(t, err, row.want)
				for _, f := range b.later {
					f()
				}
				for _, n := range m.nodes {
					for _, e := range slices.Clone(n.endpoints) {
						if !strings.HasPrefix(e.name, "db-") {
							e.Stop()
						}
					}
				}
				Pass(time.Minute) // of what has vanished
				m.CheckEmpty()
				closeNew()
				if now := m.Registered(); !slices.Equal(now, registered) && row.want != nserr.NoForwarder {
					t.Errorf("registered are %v, were %v", now, registered)
				}
				if now := fewestDescriptors(); len(now) > len(open) {
					t.Errorf("%d descriptors left: %v, were %v", len(now)-len(open), now, open)
				}
			})
		})
	}
}

// fewestDescriptors returns the process's open descriptors when they are fewest in
// half a minute: one that comes with an event and is of no use to its receiver
// stays open for some seconds.
func fewestDescriptors() []string {
	fewest := nstest.Descriptors()
	for range 10 {
		Pass(3 * time.Second)
		if now := nstest.Descriptors(); len(now) < len(fewest) {
			fewest = now
		}
	}
	return fewest
}

// checkRefused checks that an error says all that it must.
func checkRefused(t *testing.T, err error, want *nserr.Reason) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	e := nserr.From(err)
	if e.Reason != want {
		t.Errorf("%v\nhas reason %s (%s), want %s (%s)", err, e.Reason.Code, e.Reason.Summary, want.Code, want.Summary)
	}
	if e.HowToFix() == "" || !strings.Contains(err.Error(), want.Code) {
		t.Errorf("%v: no fix, or no reason in the text", err)
	}
	if code := status.Code(err); code != want.GRPC && code != 2 { // an error from this process is no status
		t.Errorf("%v: code %v, want %v", err, code, want.GRPC)
	}
}
