// SPDX-License-Identifier: Apache-2.0

package memory_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	api "github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/registry/memory"
)

type endpoints = memory.Store[*api.NetworkServiceEndpoint]

// fill registers n endpoints, 50 per service.
func fill(tb testing.TB, s *endpoints, n int) {
	for i := range n {
		put(tb, s, &api.NetworkServiceEndpoint{
			Name: fmt.Sprintf("endpoint-%d", i), Url: "tcp://10.0.0.1:5001",
			NetworkServiceNames: []string{fmt.Sprintf("service-%d", i/50)},
		})
	}
}

func put(tb testing.TB, s *endpoints, nse *api.NetworkServiceEndpoint) {
	_, err := s.Update(context.Background(), nse.Name, func(*api.NetworkServiceEndpoint) (*api.NetworkServiceEndpoint, error) { return nse, nil })
	if err != nil {
		tb.Fatal(err)
	}
}

// BenchmarkFind compares equal results out of few and of many endpoints.
func BenchmarkFind(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		s := memory.New[*api.NetworkServiceEndpoint]()
		fill(b, s, n)
		for _, q := range []struct {
			name     string
			template *api.NetworkServiceEndpoint
			want     int
		}{
			{"name", &api.NetworkServiceEndpoint{Name: "endpoint-500"}, 1},
			{"service", &api.NetworkServiceEndpoint{NetworkServiceNames: []string{"service-7"}}, 50},
		} {
			b.Run(fmt.Sprintf("%s/of=%d", q.name, n), func(b *testing.B) {
				b.ReportAllocs()
				for range b.N {
					got := 0
					for _, err := range s.Find(context.Background(), q.template) {
						if err != nil {
							b.Fatal(err)
						}
						got++
					}
					if got != q.want {
						b.Fatalf("%d found", got)
					}
				}
			})
		}
	}
}

// BenchmarkUpdate is a renewal among 10,000 endpoints.
func BenchmarkUpdate(b *testing.B) {
	for _, path := range []string{"", filepath.Join(b.TempDir(), "endpoints.log")} {
		b.Run(map[bool]string{true: "memory", false: "file"}[path == ""], func(b *testing.B) {
			s, err := memory.Open[*api.NetworkServiceEndpoint](memory.Config{Path: path, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			fill(b, s, 10_000)
			nse := &api.NetworkServiceEndpoint{Name: "endpoint-500", Url: "tcp://10.0.0.1:5001", NetworkServiceNames: []string{"service-10"}}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				put(b, s, nse)
			}
		})
	}
}

// BenchmarkFanOut is one change among 10,000 endpoints that 1,000 watchers of
// its service get.
func BenchmarkFanOut(b *testing.B) {
	s := memory.New[*api.NetworkServiceEndpoint]()
	fill(b, s, 10_000)
	nse := &api.NetworkServiceEndpoint{Name: "endpoint-500", Url: "tcp://10.0.0.1:5001", NetworkServiceNames: []string{"service-10"}}
	ctx, cancel := context.WithCancel(context.Background())
	var told, done sync.WaitGroup
	for range 1000 {
		w, err := s.Watch(ctx, &api.NetworkServiceEndpoint{NetworkServiceNames: []string{"service-10"}})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.Next(ctx); err != nil {
			b.Fatal(err)
		}
		done.Go(func() {
			defer w.Close()
			for {
				if _, err := w.Next(ctx); err != nil {
					return
				}
				told.Done()
			}
		})
	}
	b.ReportAllocs()
	for range b.N {
		told.Add(1000)
		put(b, s, nse)
		told.Wait()
	}
	cancel()
	done.Wait()
}
