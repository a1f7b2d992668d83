// SPDX-License-Identifier: Apache-2.0

package path

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/openvwire/nsm/sdk/nserr"
)

func segs(pairs ...string) []Segment {
	var out []Segment
	for _, p := range pairs {
		name, id, _ := strings.Cut(p, "/")
		out = append(out, Segment{Name: name, ID: id})
	}
	return out
}

// said is a path of one segment with n metrics, whose names and values have at least and
// at most as many bytes.
func said(n, name, value int) []Segment {
	out := segs("nsc/c")
	out[0].Metrics = make(map[string]string)
	for i := range n {
		out[0].Metrics[fmt.Sprintf("%0*d", name, i)] = strings.Repeat("v", value)
	}
	return out
}

func TestEnter(t *testing.T) {
	long := Path{Index: MaxSegments - 1}
	for i := range MaxSegments {
		long.Segments = append(long.Segments, Segment{Name: "h", ID: fmt.Sprint(i)})
	}
	for _, tt := range []struct {
		name   string
		in     Path
		connID string
		hop    string
		want   Path
		err    error
	}{
		{name: "no path, no id", hop: "m", want: Path{Segments: segs("m/")}},
		{name: "no path, id kept", hop: "m", connID: "c", want: Path{Segments: segs("m/c")}},
		{name: "first pass appends", in: Path{Segments: segs("nsc/c")}, connID: "c", hop: "m",
			want: Path{Index: 1, Segments: segs("nsc/c", "m/")}},
		{name: "refresh keeps the id", in: Path{Segments: segs("nsc/c", "m/u", "f/v")}, connID: "c", hop: "m",
			want: Path{Index: 1, Segments: segs("nsc/c", "m/u", "f/v")}},
		{name: "re-route renames, keeps what is behind", in: Path{Segments: segs("nsc/c", "m/u", "f/v")}, connID: "c", hop: "m2",
			want: Path{Index: 1, Segments: segs("nsc/c", "m2/", "f/v")}},
		{name: "own segment is a no-op", in: Path{Index: 1, Segments: segs("nsc/c", "m/u")}, connID: "other", hop: "m",
			want: Path{Index: 1, Segments: segs("nsc/c", "m/u")}},
		{name: "same manager again behind a pass-through endpoint", in: Path{Index: 3, Segments: segs("nsc/c", "m/u", "f/v", "fw/w")}, connID: "w", hop: "m",
			want: Path{Index: 4, Segments: segs("nsc/c", "m/u", "f/v", "fw/w", "m/")}},
		{name: "id is not the segment's", in: Path{Segments: segs("nsc/c")}, connID: "d", hop: "m", err: nserr.SegmentID},
		{name: "index outside", in: Path{Index: 1, Segments: segs("nsc/c")}, connID: "c", hop: "m", err: nserr.BadPath},
		{name: "index without segments", in: Path{Index: 1}, hop: "m", err: nserr.BadPath},
		{name: "negative index", in: Path{Index: -1, Segments: segs("nsc/c")}, hop: "m", err: nserr.BadPath},
		{name: "segment without name", in: Path{Segments: segs("/c")}, connID: "c", hop: "m", err: nserr.BadPath},
		{name: "segment without id", in: Path{Segments: segs("nsc/")}, connID: "", hop: "m", err: nserr.BadPath},
		{name: "id of giant length", in: Path{Segments: segs("nsc/" + strings.Repeat("x", MaxID+1))}, hop: "m", err: nserr.BadPath},
		{name: "as many metrics as allowed", in: Path{Segments: said(MaxMetrics, 1, MaxMetric)}, connID: "c", hop: "m",
			want: Path{Index: 1, Segments: append(said(MaxMetrics, 1, MaxMetric), segs("m/")...)}},
		{name: "many metrics", in: Path{Segments: said(MaxMetrics+1, 1, 0)}, connID: "c", hop: "m", err: nserr.BadPath},
		{name: "many metrics of a hop behind", in: Path{Segments: append(segs("nsc/d"), said(MaxMetrics+1, 1, 0)...)}, connID: "d", hop: "m", err: nserr.BadPath},
		{name: "long metric", in: Path{Segments: said(1, 1, MaxMetric+1)}, connID: "c", hop: "m", err: nserr.BadPath},
		{name: "metric of a long name", in: Path{Segments: said(1, MaxID+1, 1)}, connID: "c", hop: "m", err: nserr.BadPath},
		{name: "same id twice is a loop", in: Path{Index: 2, Segments: segs("nsc/c", "m/u", "f/c")}, connID: "c", hop: "x", err: nserr.LoopingPath},
		{name: "too long is a loop", in: long, connID: fmt.Sprint(MaxSegments - 1), hop: "x", err: nserr.LoopingPath},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Enter(tt.in, tt.connID, tt.hop)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error = %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A hop that enters a path stands behind its caller, whose part stays as it was sent.
func TestEnterKeepsWhatWasSent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 10).Draw(t, "segments")
		var p Path
		for i := range n {
			p.Segments = append(p.Segments, Segment{Name: rapid.StringMatching(`[a-f]`).Draw(t, "name"), ID: fmt.Sprint(i)})
		}
		p.Index = rapid.IntRange(0, n-1).Draw(t, "index")
		before := p.Clone()
		in, err := Enter(p, p.Current().ID, "hop")
		if err != nil {
			t.Fatal(err)
		}
		if in.Current().Name != "hop" {
			t.Fatalf("own segment is %v", in.Current())
		}
		if in.Index != p.Index+1 {
			t.Fatalf("index %d, want %d", in.Index, p.Index+1)
		}
		if diff := cmp.Diff(before.Segments[:p.Index+1], in.Segments[:p.Index+1]); diff != "" {
			t.Fatal(diff)
		}
		if diff := cmp.Diff(before, p); diff != "" {
			t.Fatal("the caller's path was changed:", diff)
		}
		if trimmed := Trim(in); len(trimmed.Segments) != in.Index+1 {
			t.Fatal("trim left a tail")
		}
	})
}

func TestExpires(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	p := Path{Segments: []Segment{{Expires: at(30)}, {Expires: at(10)}, {Expires: at(20)}}}
	if got := p.Expires(); !got.Equal(at(10)) {
		t.Errorf("Expires = %v", got)
	}
	p.Segments[1].Expires = time.Time{}
	if got := p.Expires(); !got.IsZero() {
		t.Errorf("Expires with an unknown segment = %v, want zero", got)
	}
}

// BenchmarkEnter is how a hop finds its place in a path of six, as with every refresh.
func BenchmarkEnter(b *testing.B) {
	p := Path{Index: 1}
	for _, name := range []string{"web", "manager-a", "forwarder-a", "manager-b", "forwarder-b", "db"} {
		p.Segments = append(p.Segments, Segment{Name: name, ID: name + "-0"})
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Enter(p, "manager-a-0", "forwarder-a"); err != nil {
			b.Fatal(err)
		}
	}
}
