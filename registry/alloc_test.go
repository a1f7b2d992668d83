// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"fmt"
	"testing"

	api "github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/internal/nstest"
)

// A Register and a Find have ceilings of what they allocate, both ends of the call
// together, a few per cent above what it was when that was last looked at. Test/sim has
// those of wires.
func TestAllocations(t *testing.T) {
	if nstest.Race {
		t.Skip("the race detector allocates too: step bench counts without it")
	}
	f := newFixture(t)
	for i := range 100 {
		f.put(t, endpoint(fmt.Sprintf("endpoint-%d", i), fmt.Sprintf("service-%d", i/10)))
	}
	c := f.as(f.authority.issue(t, "nse"))
	for _, tt := range []struct {
		what string
		most float64
		do   func() error
	}{
		{"renewal of an endpoint", 250, func() error {
			_, err := c.endpoints.Register(t.Context(), endpoint("mine", "s"))
			return err
		}},
		{"Find of 10 endpoints", 195, func() error {
			found, err := c.endpoints.Find(t.Context(), &api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: endpointsOf("service-7")})
			if got := receive(t, found, err); len(got) != 10 {
				return fmt.Errorf("%d found", len(got))
			}
			return nil
		}},
	} {
		got := testing.AllocsPerRun(100, func() {
			if err := tt.do(); err != nil {
				t.Fatal(err)
			}
		})
		fmt.Printf("MEASURED: %.0f allocations per %s, at most %.0f may be\n", got, tt.what, tt.most)
		if got > tt.most {
			t.Errorf("%.0f allocations per %s, at most %.0f may be: see whence they come with 'go test ./registry -run TestAllocations -memprofile mem -memprofilerate 1', then 'go tool pprof -sample_index alloc_objects mem'", got, tt.what, tt.most)
		}
	}
}
