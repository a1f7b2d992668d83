// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A connection ends here when this hop has to close it, or when a hop behind has; what
// the hops before say is in the former, and an end that has passed is nonsense.
func TestEndOf(t *testing.T) {
	now := time.Unix(1000, 0)
	in := func(s int) time.Time { return now.Add(time.Duration(s) * time.Second) }
	for _, tt := range []struct {
		name string
		ends []int // of the segments, in seconds from now; 0 = does not say
		want int
	}{
		{"all alike", []int{60, 60, 60, 60}, 45},
		{"none says", []int{0, 0, 0, 0}, 45},
		{"the last is the first to end", []int{60, 60, 60, 20}, 20},
		{"so is this hop", []int{60, 30, 60, 60}, 30},
		{"that of the client is counted already", []int{10, 60, 60, 60}, 45},
		{"a clock that is wrong", []int{60, 60, -600, 60}, 45},
	} {
		c := &networkservice.Connection{Path: &networkservice.Path{Index: 1}}
		for _, s := range tt.ends {
			segment := &networkservice.PathSegment{}
			if s != 0 {
				segment.Expires = timestamppb.New(in(s))
			}
			c.Path.PathSegments = append(c.Path.PathSegments, segment)
		}
		if got := endOf(c, in(45), now); !got.Equal(in(tt.want)) {
			t.Errorf("%s: ends in %v, want %d s", tt.name, got.Sub(now), tt.want)
		}
	}
}
