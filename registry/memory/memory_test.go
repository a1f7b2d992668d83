// SPDX-License-Identifier: Apache-2.0

package memory_test

import (
	"path/filepath"
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
