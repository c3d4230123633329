"""URLs and domains are compared in one form, whatever form they were written in."""

from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curate.filters.addresses import domains_of, host_of, normalise_domain, normalise_url

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
DOMAINS = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
PATHS = st.from_regex(r"(/[A-Za-z0-9%._~-]{0,6}){0,3}", fullmatch=True)
QUERIES = st.from_regex(r"(\?[A-Za-z0-9=&/]{1,8})?", fullmatch=True)


@settings(max_examples=40)
@given(st.sampled_from(["http", "https"]), DOMAINS, PATHS, QUERIES, st.data())
def test_ways_to_write_a_url_are_one(scheme, domain, path, query, data):
    plain = f"{scheme}://{domain}{path or '/'}{query}"
    assert normalise_url(plain) == plain
    dot = data.draw(st.sampled_from(["", "."]))
    port = data.draw(st.sampled_from(["", ":", {"http": ":80", "https": ":443"}[scheme]]))
    fragment = data.draw(st.sampled_from(["", "#", "#top/a?b"]))
    space = data.draw(st.sampled_from(["", " ", "\n"]))
    case = data.draw(st.sampled_from([str, str.upper, str.title]))
    assert (
        normalise_url(
            f"{space}{case(scheme)}://{case(domain)}{dot}{port}{path}{query}{fragment}{space}"
        )
        == plain
    )


@given(DOMAINS, PATHS, QUERIES, DOMAINS, PATHS, QUERIES)
def test_urls_of_other_hosts_paths_or_queries_stay_others(host, path, query, host2, path2, query2):
    same = (host, path or "/", query) == (host2, path2 or "/", query2)
    one, other = f"http://{host}{path}{query}", f"http://{host2}{path2}{query2}"
    assert (normalise_url(one) == normalise_url(other)) == same


@example("A://0? #")
@given(st.text(max_size=30) | st.text("ab.:/@[]?#%8xß ", max_size=20).map("http://".__add__))
def test_normalising_twice_is_normalising_once(text):
    try:
        once = normalise_url(text)
    except ValueError:
        return
    assert normalise_url(once) == once
    assert host_of(text) == host_of(once) == urlsplit(once).hostname


def test_what_is_kept_of_a_url():
    assert normalise_url("HTTP://U:P@ExAmple.ORG:8080/A%7e?Q=1#f") == (
        "http://U:P@example.org:8080/A%7e?Q=1"
    )
    assert normalise_url("https://Bücher.example/") == "https://xn--bcher-kva.example/"
    assert normalise_url("http://[2001:DB8::1]:80") == "http://[2001:db8::1]/"
    assert normalise_url("https://a.org:80/") == "https://a.org:80/"


@pytest.mark.parametrize("text", ["", "a.org/x", "/x", "http://", "http://a:b/", "http://[a/"])
def test_what_is_no_url_is_refused(text):
    with pytest.raises(ValueError):
        normalise_url(text)


@given(st.lists(LABELS, min_size=1, max_size=4), st.lists(LABELS, min_size=1, max_size=4))
def test_a_host_is_of_a_domain_where_the_labels_of_one_end_with_those_of_the_other(host, domain):
    below = host[-len(domain) :] == domain
    assert (".".join(domain) in domains_of(".".join(host))) == below


@pytest.mark.parametrize(
    "text", ["", "a.org/x", "http://a.org", "a.org:80", "*.a.org", "a.org # asked", "a..org"]
)
def test_what_is_no_domain_is_refused(text):
    with pytest.raises(ValueError):
        normalise_domain(text)
