// SPDX-License-Identifier: Apache-2.0

package regpath_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/metadata"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/regpath"
)

func path(index uint32, tokens ...string) regpath.Path {
	p := regpath.Path{Index: index}
	for _, t := range tokens {
		p.PathSegments = append(p.PathSegments, regpath.Segment{Token: t})
	}
	return p
}

func TestJSONForm(t *testing.T) {
	p := path(1, "a", "b")
	const want = `{"Index":1,"PathSegments":[{"token":"a"},{"token":"b"}]}`
	if got := p.String(); got != want {
		t.Errorf("String = %s, want %s", got, want)
	}
	if got, err := regpath.Parse(want); err != nil || !cmp.Equal(got, p) {
		t.Errorf("Parse = %+v, %v", got, err)
	}
	// As the reference sends it the first time.
	if got, err := regpath.Parse(`{"Index":0,"PathSegments":null}`); err != nil || !cmp.Equal(got, regpath.Path{}) {
		t.Errorf("Parse = %+v, %v", got, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":           "path",
		"empty":             "",
		"another type":      `[]`,
		"a negative index":  `{"Index":-1}`,
		"a huge index":      `{"Index":4294967296}`,
		"too many segments": `{"PathSegments":[` + strings.Repeat("{},", regpath.MaxSegments) + `{}]}`,
		"too long":          `{"Index":0}` + strings.Repeat(" ", regpath.MaxSize),
	} {
		if p, err := regpath.Parse(text); !errors.Is(err, nserr.BadPath) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func TestAdvance(t *testing.T) {
	full := path(regpath.MaxSegments-1, strings.Split(strings.Repeat("t,", regpath.MaxSegments-1)+"t", ",")...)
	for _, tt := range []struct {
		name   string
		path   regpath.Path
		peer   string
		want   regpath.Path
		tokens []string
		err    string
	}{
		{"first call", regpath.Path{}, "peer", path(1, "peer", "own"), []string{"peer", "own"}, ""},
		{"first call without a token", regpath.Path{}, "", path(1, "", "own"), []string{"", "own"}, ""},
		{"first pass", path(1, "a", "b"), "peer", path(2, "a", "peer", "own"), []string{"a", "peer", "own"}, ""},
		{"refresh", path(0, "a", "b", "c"), "peer", path(1, "peer", "own", "c"), []string{"peer", "own"}, ""},
		{"the caller has no token", path(0, "a", "b"), "", path(1, "a", "own"), []string{"a", "own"}, ""},
		{"the caller is not in the path", path(2, "a", "b"), "peer", regpath.Path{}, nil, "Path.Index+1==3 should be less or equal len(Path.PathSegments)==2"},
		{"index overflow", path(1<<32-1, "a"), "peer", regpath.Path{}, nil, "Path.Index+1==4294967296 should be less or equal len(Path.PathSegments)==1"},
		{"too long", full, "peer", regpath.Path{}, nil, "path has 16 segments already"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, got := path(tt.path.Index, tt.path.Tokens()...), tt.path
			original := append([]regpath.Segment(nil), tt.path.PathSegments...)
			err := got.Advance(tt.peer, "own")
			if tt.err != "" {
				if !errors.Is(err, nserr.BadPath) || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("Advance = %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("path (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.tokens, got.Tokens()); diff != "" {
				t.Errorf("tokens (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(original, tt.path.PathSegments); diff != "" || before.Index != tt.path.Index {
				t.Errorf("the original has changed (-want +got):\n%s", diff)
			}
			got.Trim()
			if end := len(got.PathSegments); end != int(got.Index)+1 {
				t.Errorf("%d segments after Trim", end)
			}
		})
	}
}

func TestMetadata(t *testing.T) {
	out, _ := metadata.FromOutgoingContext(path(1, "a", "b").ToOutgoing(context.Background()))
	in := metadata.NewIncomingContext(context.Background(), out)
	if got, err := regpath.FromIncoming(in); err != nil || !cmp.Equal(got, path(1, "a", "b")) {
		t.Errorf("FromIncoming = %+v, %v", got, err)
	}
	if got, err := regpath.FromIncoming(context.Background()); err != nil || !cmp.Equal(got, regpath.Path{}) {
		t.Errorf("without metadata: %+v, %v", got, err)
	}
	last := metadata.Pairs(regpath.Key, "rubbish", regpath.Key, path(0, "z").String())
	if got, err := regpath.FromHeader(last); err != nil || !cmp.Equal(got, path(0, "z")) {
		t.Errorf("of two values: %+v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"Index":1,"PathSegments":[{"token":"a"},{"token":"b"}]}`)
	f.Add(`{"Index":0,"PathSegments":null}`)
	f.Add(`{"index":4294967295,"pathsegments":[null]}`)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := regpath.Parse(text)
		if err != nil {
			return
		}
		p.Trim()
		if again, err := regpath.Parse(p.String()); err != nil || again.String() != p.String() {
			t.Errorf("%q: %v, %v", text, again, err)
		}
		before := len(p.PathSegments)
		if p.Advance("peer", "own") != nil {
			return
		}
		raws := p.Tokens()
		if len(raws) < 2 || raws[len(raws)-2] != "peer" || raws[len(raws)-1] != "own" || len(raws) > max(before+1, 2) {
			t.Errorf("%q: tokens %q", text, raws)
		}
	})
}
