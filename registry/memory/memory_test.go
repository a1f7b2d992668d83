// SPDX-License-Identifier: Apache-2.0

package memory_test

import (
	"path/filepath"
	"runtime"
	"testing"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"go.uber.org/goleak"

	"github.com/openvwire/nsm/registry/memory"
	"github.com/openvwire/nsm/registry/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		storetest.Run(t, func(testing.TB, string) storetest.Stores {
			return storetest.Stores{
				Services:  memory.New[*api.NetworkService](),
				Endpoints: memory.New[*api.NetworkServiceEndpoint](),
			}
		}, storetest.Options{})
	})
	t.Run("file", func(t *testing.T) {
		storetest.Run(t, openFiles, storetest.Options{Durable: true})
	})
}

func openFiles(t testing.TB, dir string) storetest.Stores {
	services, err := memory.Open[*api.NetworkService](memory.Config{Path: filepath.Join(dir, "services.log"), Sync: true})
	if err != nil {
		t.Fatal(err)
	}
	endpoints, err := memory.Open[*api.NetworkServiceEndpoint](memory.Config{Path: filepath.Join(dir, "endpoints.log")})
	if err != nil {
		t.Fatal(err)
	}
	return storetest.Stores{Services: services, Endpoints: endpoints}
}

// A Find looks at what it may find, not at all there is.
func TestFindDoesNotScan(t *testing.T) {
	allocated := func(s *endpoints, template *api.NetworkServiceEndpoint) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 10 {
			for _, err := range s.Find(t.Context(), template) {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	few, many := memory.New[*api.NetworkServiceEndpoint](), memory.New[*api.NetworkServiceEndpoint]()
	fill(t, few, 100)
	fill(t, many, 10_000)
	for _, template := range []*api.NetworkServiceEndpoint{
		{Name: "endpoint-50"}, {NetworkServiceNames: []string{"service-1"}}, {Name: "none"}, {NetworkServiceNames: []string{"none"}},
	} {
		if a, b := allocated(few, template), allocated(many, template); b > a+a/2+4096 {
			t.Errorf("Find of %v: %d bytes out of 100, %d out of 10,000", template, a, b)
		}
	}
}
