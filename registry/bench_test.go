// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/openvwire/nsm/sdk/rpc"
)

// overGRPC serves the fixture on a real gRPC server in this process.
func overGRPC(b *testing.B, f *fixture) clients {
	clientCreds, serverCreds := rpc.Plaintext()
	s := rpc.NewServer(rpc.ServerOptions{Credentials: serverCreds})
	f.srv.Register(s)
	l := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	cc, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(clientCreds),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (c net.Conn, err error) { return l.DialContext(ctx) }))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cc.Close()
		s.Stop()
		<-served
	})
	return clientsOf(cc)
}

func (f *fixture) fill(b *testing.B, n int) {
	for i := range n {
		nse := endpoint(fmt.Sprintf("endpoint-%d", i), fmt.Sprintf("service-%d", i/50))
		f.put(b, nse)
	}
}

func (f *fixture) put(b testing.TB, nse *api.NetworkServiceEndpoint) {
	_, err := f.endpoints.Update(b.Context(), nse.Name, func(*api.NetworkServiceEndpoint) (*api.NetworkServiceEndpoint, error) { return nse, nil })
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkFind is a whole Find of 50 endpoints over gRPC, out of 1,000 and out
// of 100,000 in turn, so that both meet the same machine. ratio is between the
// medians.
func BenchmarkFind(b *testing.B) {
	counts := []int{1000, 100_000}
	var from []clients
	for _, n := range counts {
		f := newFixture(b)
		f.fill(b, n)
		from = append(from, overGRPC(b, f))
	}
	took := make([][]time.Duration, len(counts))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		for i, c := range from {
			start := time.Now()
			stream, err := c.endpoints.Find(b.Context(), &api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: endpointsOf("service-7")})
			if got := receive(b, stream, err); len(got) != 50 {
				b.Fatalf("%d found", len(got))
			}
			took[i] = append(took[i], time.Since(start))
		}
	}
	b.StopTimer()
	median := func(i int) float64 {
		slices.Sort(took[i])
		return float64(took[i][len(took[i])/2].Microseconds())
	}
	for i, n := range counts {
		b.ReportMetric(median(i), fmt.Sprintf("µs/of=%d", n))
	}
	b.ReportMetric(median(1)/median(0), "ratio")
}

func endpointsOf(service string) *api.NetworkServiceEndpoint {
	return &api.NetworkServiceEndpoint{NetworkServiceNames: []string{service}}
}

// BenchmarkRegister is a renewal, signed and checked, in process.
func BenchmarkRegister(b *testing.B) {
	f := newFixture(b)
	f.fill(b, 10_000)
	c := f.as(f.authority.issue(b, "nse"))
	b.ReportAllocs()
	for range b.N {
		if _, err := c.endpoints.Register(b.Context(), endpoint("mine", "s")); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWatchFanOut is one change that reaches 1,000 watching clients.
func BenchmarkWatchFanOut(b *testing.B) {
	f := newFixture(b)
	f.fill(b, 1000)
	c := overGRPC(b, f)
	ctx, cancel := context.WithCancel(b.Context())
	var told, done sync.WaitGroup
	for range 1000 {
		stream, err := c.endpoints.Find(ctx, &api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: endpointsOf("new"), Watch: true})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := stream.Header(); err != nil {
			b.Fatal(err)
		}
		done.Go(func() {
			for {
				if _, err := stream.Recv(); err != nil {
					return
				}
				told.Done()
			}
		})
	}
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		told.Add(1000)
		f.put(b, endpoint("mine", "new"))
		told.Wait()
	}
	b.StopTimer()
	cancel()
	done.Wait()
}
